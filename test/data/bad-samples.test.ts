import { expect, test } from "vitest";
import { BadSamples } from "../../src/data/bad-samples.ts";
import { MediaError } from "../../src/errors.ts";

const quiet = { warn: () => {} };
const skip = { onBadSample: "skip", maxBadSamples: 2 } as const;
const broken = new MediaError("v.mp4", "no such file");
const at = (line: number, file = "a.jsonl") => ({ file, line });

test("a sample counts once, whoever meets it", () => {
  const bad = new BadSamples(skip, quiet);
  for (const where of [at(3), at(3), { ...at(3), sampleId: "x" }, at(3, "b.jsonl")]) bad.report(where, broken);
  expect(bad.count).toBe(2);
  expect(() => bad.report(at(4), broken)).toThrow(/a\.jsonl:4: 3 samples were unusable, data\.maxBadSamples is 2/);
  expect(bad.count).toBe(2);
  expect(() => bad.report(at(4), broken)).toThrow(/3 samples/); // again: it was not let through
});

test("a resumed run goes on counting where it was", () => {
  const before = new BadSamples(skip, quiet);
  before.report(at(1), broken);
  before.report(at(2), broken);
  const after = new BadSamples(skip, quiet, before.known);
  expect(after.count).toBe(2);
  after.report(at(2), broken); // the same file is read again
  expect(after.count).toBe(2);
  expect(() => after.report(at(3), broken)).toThrow(/3 samples/);
});

test("what other processes met counts, also where it is nothing new and the limit has been lowered", () => {
  const bad = new BadSamples(skip, quiet, ["a.jsonl:1"]);
  bad.learn(["a.jsonl:1", "a.jsonl:2"]);
  expect(() => bad.learn(["b.jsonl:7"])).toThrow("b.jsonl:7: 3 samples were unusable, data.maxBadSamples is 2");
  const resumed = new BadSamples({ ...skip, maxBadSamples: 1 }, quiet, ["a.jsonl:1", "a.jsonl:2"]);
  expect(() => resumed.learn([])).toThrow("a.jsonl:2: 2 samples were unusable, data.maxBadSamples is 1");
});

test("what is not about data is thrown, whatever the config says; with error so is everything", () => {
  const bad = new BadSamples(skip, quiet);
  expect(() => bad.report(at(1), new TypeError("bug"))).toThrow("bug");
  expect(() => new BadSamples({ ...skip, onBadSample: "error" }, quiet).report(at(1), broken)).toThrow(
    /a\.jsonl:1: v\.mp4/,
  );
  expect(bad.count).toBe(0);
});
