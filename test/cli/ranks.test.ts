import { expect, test } from "vitest";
import { resuming } from "../../src/cli/ranks.ts";

test.each([
  [
    ["grpo", "-c", "a.yaml"],
    ["grpo", "-c", "a.yaml", "--resume"],
  ],
  [
    ["grpo", "--overwrite", "--nproc", "2"],
    ["grpo", "--nproc", "2", "--resume"],
  ],
  [
    ["grpo", "--overwrite", "true", "--resume=false", "--set", "a=true"],
    ["grpo", "--set", "a=true", "--resume"],
  ],
  [
    ["sft", "--no-resume", "--json", "false"],
    ["sft", "--json", "false", "--resume"],
  ],
])("%j goes on as %j", (args, expected) => {
  expect(resuming(args)).toEqual(expected);
});
