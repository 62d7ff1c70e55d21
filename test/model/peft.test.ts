/** Adapters in PEFT's layout, against what PEFT itself wrote and computed (scripts/make-peft-goldens.py). */

import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, expect, test } from "vitest";
import { CheckpointError } from "../../src/errors.ts";
import { packGroups } from "../../src/model/packed.ts";
import { adapterContent, loadAdapter } from "../../src/model/peft.ts";
import { Qwen2VL } from "../../src/model/qwen2vl/model.ts";
import { SafetensorsFile, writeSafetensors } from "../../src/model/safetensors.ts";
import { saveFolder } from "../../src/model/weights.ts";
import { liveTensors, scope } from "../../src/torch/scope.ts";
import { FIXTURES, Goldens, relativeError } from "./support.ts";

const PEFT = fileURLToPath(new URL("../fixtures/peft/", import.meta.url));
const FLOAT32 = { device: "cpu", dtype: "float32" } as const;
const before = liveTensors().count;
const scratch = mkdtempSync(join(tmpdir(), "peft-"));
afterAll(() => {
  rmSync(scratch, { recursive: true });
  expect(liveTensors().count).toBe(before);
});

function logprobsOf(model: Qwen2VL): number[] {
  using goldens = new Goldens("goldens.safetensors");
  return scope(() => {
    using pass = model.pass(packGroups([goldens.group("group")]), { grad: false });
    return pass.logprobs.toNumbers();
  });
}

const CASES = ["language", "attention", "all-rslora"];

test.each(CASES)("PEFT's adapter %s gives PEFT's log-probabilities, beside the model and merged into it", (name) => {
  const folder = join(PEFT, name);
  using goldens = new Goldens("goldens.safetensors", folder);
  const expected = (kind: string) => [0, 1].flatMap((i) => goldens.numbers(`${kind}${i}`));
  const base = Qwen2VL.load(FIXTURES, FLOAT32);
  const plain = logprobsOf(base);
  using model = base.withAdapter(loadAdapter(folder, base.config, FLOAT32));
  const beside = logprobsOf(model);
  expect(relativeError(beside, expected("logprobs"))).toBeLessThan(1e-5);
  expect(relativeError(beside, plain)).toBeGreaterThan(0.05);

  model.save(join(scratch, name)); // merged
  using merged = Qwen2VL.load(join(scratch, name), FLOAT32);
  expect(relativeError(logprobsOf(merged), expected("merged"))).toBeLessThan(1e-5);
  using parts = Qwen2VL.load(FIXTURES, FLOAT32);
  model.adapter?.mergeInto(parts.parameters);
  expect(logprobsOf(parts)).toEqual(logprobsOf(merged));
});

test.each(
  CASES,
)("what is written of PEFT's adapter %s holds PEFT's tensors under PEFT's names, and PEFT reads it", (name) => {
  const from = join(PEFT, name);
  const to = join(scratch, `${name}-again`);
  using model = Qwen2VL.load(FIXTURES, FLOAT32);
  {
    using adapter = loadAdapter(from, model.config, FLOAT32);
    saveFolder(to, { ...adapterContent(adapter, "qwen2vl"), copies: [] });
  }
  using theirs = new SafetensorsFile(join(from, "adapter_model.safetensors"));
  using ours = new SafetensorsFile(join(to, "adapter_model.safetensors"));
  expect(ours.names().sort()).toEqual(theirs.names().sort());
  expect(ours.names()[0]).toMatch(/^base_model\.model\.model\..*\.lora_[AB]\.weight$/);
  for (const tensor of ours.names()) {
    expect(ours.shape(tensor)).toEqual(theirs.shape(tensor));
    scope(() => expect(ours.tensor(tensor).toNumbers()).toEqual(theirs.tensor(tensor).toNumbers()));
  }
  const json = (folder: string) => JSON.parse(readFileSync(join(folder, "adapter_config.json"), "utf8"));
  const [written, original] = [json(to), json(from)];
  for (const knob of ["peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "bias", "base_model_name_or_path"])
    expect(written[knob]).toEqual(original[knob]);
  const sorted = (targets: unknown) => (Array.isArray(targets) ? [...targets].sort() : targets);
  if (Array.isArray(original.target_modules))
    expect(sorted(written.target_modules)).toEqual(sorted(original.target_modules));
  else
    for (const tensor of ours.names()) expect(moduleOf(tensor)).toMatch(new RegExp(`^(?:${written.target_modules})$`));
  // PEFT has read this very config, with these tensors: the same log-probabilities
  expect(written).toEqual(JSON.parse(readFileSync(join(from, "rewritten_config.json"), "utf8")));
  using goldens = new Goldens("goldens.safetensors", from);
  for (const i of [0, 1]) expect(goldens.numbers(`rewritten${i}`)).toEqual(goldens.numbers(`logprobs${i}`));
});

function moduleOf(tensor: string): string {
  return tensor.replace(/^base_model\.model\./, "").replace(/\.lora_[AB]\.weight$/, "");
}

test("an adapter that would compute something else is refused, with what is wrong", () => {
  using model = Qwen2VL.load(FIXTURES, FLOAT32);
  const altered = (name: string, more: object) => {
    const folder = join(scratch, name);
    cpSync(join(PEFT, "attention"), folder, { recursive: true });
    const file = join(folder, "adapter_config.json");
    writeFileSync(file, JSON.stringify({ ...JSON.parse(readFileSync(file, "utf8")), ...more }));
    return () => loadAdapter(folder, model.config, FLOAT32)[Symbol.dispose]();
  };
  expect(altered("dora", { use_dora: true })).toThrow(/has use_dora true, which is not supported/);
  expect(altered("bias", { bias: "all" })).toThrow(/has bias "all"/);
  expect(altered("pattern", { rank_pattern: { q_proj: 9 } })).toThrow(/has rank_pattern/);
  for (const init of ["pissa_niter_4", "olora", "loftq"])
    expect(altered(init, { init_lora_weights: init })).toThrow(
      `has init_lora_weights "${init}", which is not supported`,
    );
  for (const init of [false, "gaussian"]) expect(altered(`init-${init}`, { init_lora_weights: init })).not.toThrow();
  expect(altered("ia3", { peft_type: "IA3" })).toThrow(/has peft_type IA3; expected LORA/);
  expect(altered("rank", { r: 5 })).toThrow(/does not fit the model; 8 misshapen: .*expected \[5, 32\], got \[4, 32\]/);
  expect(() => loadAdapter(FIXTURES, model.config, FLOAT32)).toThrow(CheckpointError);
  const empty = altered("empty", {});
  writeSafetensors(join(scratch, "empty", "adapter_model.safetensors"), []);
  expect(empty).toThrow(/adapter_model\.safetensors: holds no tensors/);
});
