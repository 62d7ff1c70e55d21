import { readdirSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { Config } from "../../src/config/schema.ts";
import { Tokenizer } from "../../src/data/tokenizer.ts";
import { DataError, NumericsError } from "../../src/errors.ts";
import { PrefillPlan } from "../../src/model/attention.ts";
import { mediaOf, packGroups } from "../../src/model/packed.ts";
import type { Qwen2VL } from "../../src/model/qwen2vl/model.ts";
import { fill_, full, gather, logSoftmax, reshape, slice } from "../../src/torch/ops.ts";
import { scope } from "../../src/torch/scope.ts";
import { fromArray } from "../../src/torch/tensor.ts";
import { openModel } from "../../src/trainer/assemble.ts";
import { readMetrics } from "../../src/trainer/run-folder.ts";
import { closeSession, loadPrompts, openSession, type Session } from "../../src/trainer/session.ts";
import { responseIds, trainSft } from "../../src/trainer/sft.ts";
import type { TrainHooks } from "../../src/trainer/training-loop.ts";
import type { Prompt } from "../../src/types.ts";
import { fakeSample } from "./fakes.ts";
import { makeTinyWorld, type TinyWorld, tinyConfig } from "./tiny-run.ts";

let world: TinyWorld;
beforeAll(async () => {
  world = await makeTinyWorld();
});
afterAll(() => rmSync(world.folder, { recursive: true }));

const metricsOf = (runDir: string) => readMetrics(path.join(runDir, "metrics.jsonl"));

test("the labels are the response, the end of the turn and the line break behind it", async () => {
  const tokenizer = await Tokenizer.load(world.model);
  const ids = responseIds(fakeSample("a", { response: "<answer>A</answer>" }), tokenizer);
  expect(tokenizer.decode(ids, { skipSpecialTokens: false })).toBe("<answer>A</answer><|im_end|>\n");
  // As they stand in the whole chat, behind the last <|im_start|>assistant and its line break.
  const question = [{ role: "user" as const, content: "Hi" }];
  const whole = tokenizer.encode(
    tokenizer.chatText([...question, { role: "assistant", content: "<answer>A</answer>" }], {
      addGenerationPrompt: false,
    }),
  );
  expect([...whole].slice(-ids.length)).toEqual([...ids]);
  const prompt = tokenizer.encode(tokenizer.chatText(question, { addGenerationPrompt: true }));
  expect([...prompt, ...ids]).toEqual([...whole]);
  expect(() => responseIds(fakeSample("b"), tokenizer)).toThrow(DataError);
});

/** Mean over all labels of -log p, a record at a time through the plain causal forward. */
function plainCrossEntropy(model: Qwen2VL, prompts: Prompt[], labels: Int32Array[]): number {
  let sum = 0;
  for (const [i, prompt] of prompts.entries()) {
    const response = labels[i] as Int32Array;
    const { ids, positions } = packGroups([{ prompt, completions: [response] }]);
    scope(() => {
      using plan = new PrefillPlan([ids.length], () => {});
      const features = model.visionFeatures(mediaOf([prompt]));
      const hidden = model.forward(model.embed(ids, features), positions, plan);
      const first = prompt.inputIds.length - 1;
      const logits = model.logits(slice(hidden, 0, first, first + response.length));
      const index = reshape(fromArray(response, [response.length], { dtype: "int64" }), [-1, 1]);
      sum -= gather(logSoftmax(logits, 1), 1, index)
        .toNumbers()
        .reduce((a, b) => a + b, 0);
    });
  }
  return sum / labels.reduce((total, ids) => total + ids.length, 0);
}

/** Norm of the gradient of the mean over all labels, a record at a time. */
function gradNorm({ model, optimizer }: Session, prompts: Prompt[], labels: Int32Array[]): number {
  const tokens = labels.reduce((total, ids) => total + ids.length, 0);
  optimizer.zeroGrad();
  for (const [i, prompt] of prompts.entries()) {
    scope(() => {
      using pass = model.pass(packGroups([{ prompt, completions: [labels[i] as Int32Array] }]), { grad: true });
      pass.backward(full(pass.logprobs.shape, -1 / tokens));
    });
  }
  using norm = optimizer.gradNorm();
  return norm.item();
}

test("loss and gradient of the first step are those of a plain cross entropy over the response tokens, however they are packed", async () => {
  const config = tinyConfig(world, "plain", { trainer: { questionsPerStep: 5, steps: 1 } });
  const session = await openSession(config, {}, "sft");
  const { prompts } = await loadPrompts(session, 0);
  const labels = prompts.map(({ sample }) => responseIds(sample, session.processor.tokenizer));
  const expected = plainCrossEntropy(session.model, prompts, labels);
  const norm = gradNorm(session, prompts, labels);
  await closeSession(session);
  for (const tokensPerPack of [1, 400, 100_000]) {
    const packed = tinyConfig(world, `packed ${tokensPerPack}`, {
      trainer: { questionsPerStep: 5, steps: 1, tokensPerPack },
    });
    const { runDir } = await trainSft(packed);
    const [line] = metricsOf(runDir);
    expect(line?.["loss/sft"]).toBeCloseTo(expected, 5);
    expect((line?.["grad/norm"] as number) / norm).toBeCloseTo(1, 4);
    expect(line?.["data/response_tokens"]).toBe(labels.reduce((total, ids) => total + ids.length, 0));
  }
});

test("a few steps learn the few answers there are", async () => {
  const config = tinyConfig(world, "learn", {
    trainer: { questionsPerStep: 8, steps: 40, saveEvery: 0 },
    optimizer: { learningRate: 1e-2, schedule: "cosine", warmupFraction: 0.1 },
  });
  const lines = metricsOf((await trainSft(config)).runDir);
  expect(lines[0]?.["loss/sft"]).toBeGreaterThan(5);
  expect(lines.at(-1)?.["loss/sft"]).toBeLessThan(1.2);
  expect(lines.map((line) => line["memory/live_tensors"])).toEqual(
    new Array(40).fill(lines[0]?.["memory/live_tensors"]),
  );
});

test("bfloat16 on the CPU, gradients added up over many packs, follows float32 in one", async () => {
  const losses = async (dtype: Config["dtype"], tokensPerPack: number) => {
    const config = tinyConfig(world, `${dtype} ${tokensPerPack}`, {
      trainer: { questionsPerStep: 8, steps: 12, saveEvery: 0, tokensPerPack },
      optimizer: { learningRate: 5e-3 },
    });
    return metricsOf((await trainSft({ ...config, dtype })).runDir).map((line) => line["loss/sft"] as number);
  };
  const exact = await losses("float32", 100_000);
  const half = await losses("bfloat16", 1); // a pack per record
  expect(exact.at(-1)).toBeLessThan(0.8 * (exact[0] as number));
  for (const [i, loss] of half.entries())
    expect(Math.abs(loss / (exact[i] as number) - 1), `step ${i}`).toBeLessThan(0.02);
});

test("a bad sample is counted and left out where the config says skip, and stops the run where it does not", async () => {
  const file = path.join(world.folder, "bad.jsonl");
  const record = { question: "Which colour?", options: ["red", "blue"], answer: "red", response: "red" };
  const lines = ["red.png", "missing.png", "blue.png"].map((image, i) =>
    JSON.stringify({ id: `b${i}`, image, ...record }),
  );
  writeFileSync(file, `${lines.join("\n")}\n`);
  const data = { train: [{ file, format: "generic" }], workers: 1, cacheGib: 0 };
  const trainer = { questionsPerStep: 3, steps: 2, saveEvery: 1 };
  const skipping = tinyConfig(world, "skip", { data: { ...data, onBadSample: "skip" }, trainer });
  const counts = async (hooks: TrainHooks) =>
    metricsOf((await trainSft(skipping, hooks)).runDir).map((line) => [line["data/records"], line["data/bad_samples"]]);
  const expected = [
    [2, 1],
    [2, 2],
  ];
  expect(await counts({})).toEqual(expected);
  rmSync(path.join(skipping.runDir, "checkpoint-2"), { recursive: true });
  expect(await counts({ resume: true })).toEqual(expected); // the count goes on from the checkpoint's
  await expect(trainSft(tinyConfig(world, "strict", { data, trainer }))).rejects.toThrow(/bad\.jsonl:2.*missing\.png/s);
});

test("a record without a response is refused before a run begins", async () => {
  const file = path.join(world.folder, "no-response.jsonl");
  const record = { question: "Which colour?", options: ["red", "blue"], answer: "red", image: "red.png" };
  const lines = ["red", "red", undefined, "red", "red", "red"].map((response, i) =>
    JSON.stringify({ id: `r${i}`, ...record, response }),
  );
  writeFileSync(file, `${lines.join("\n")}\n`);
  const data = { train: [{ file, format: "generic" }], workers: 1, cacheGib: 0 };
  const trainer = { questionsPerStep: 1, steps: 1 };
  const config = tinyConfig(world, "no-response", { data, trainer });
  await expect(trainSft(config)).rejects.toThrow(/no-response\.jsonl:3 .*has no response to learn/);
  expect(readdirSync(config.runDir)).toEqual([]);
});

test("a loss that is not finite stops the run before the weights are touched, and leaves the batch behind", async () => {
  const folder = path.join(world.folder, "poisoned");
  const sane = tinyConfig(world, "poison-source");
  {
    using model = openModel(sane);
    const last = model.parameters.at(-1);
    if (last !== undefined) fill_(last.tensor, Number.NaN);
    model.save(folder, { copyFrom: world.model });
  }
  const config = tinyConfig(world, "poison", { model: { path: folder, init: "pretrained" } });
  const failure = await trainSft(config).catch((error) => error);
  expect(failure).toBeInstanceOf(NumericsError);
  expect(failure.message).toMatch(/loss\/sft of step 1 .*numerics-step-1\.json.* is NaN/);
  expect(metricsOf(config.runDir)).toEqual([]);
});
