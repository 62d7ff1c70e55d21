import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { isNeeded, runtimePackages } from "../../scripts/bundle/packages.ts";

test("a bundle takes what runs and leaves what only develops", () => {
  const names = runtimePackages(fileURLToPath(new URL("../..", import.meta.url))).map(({ path }) => path);
  for (const name of ["zod", "tsx", "esbuild", "piscina", "node-api-headers"])
    expect(names).toContain(`node_modules/${name}`);
  for (const name of ["vitest", "typescript", "@biomejs/biome"]) expect(names).not.toContain(`node_modules/${name}`);
});

test.each([
  ["node_modules/yaml/dist/doc/directives.js", true],
  ["node_modules/yaml/LICENSE.md", true],
  ["node_modules/zod/index.js", true],
  ["node_modules/zod/src", false],
  ["node_modules/fluent-ffmpeg/doc", false],
  ["node_modules/@huggingface/jinja/test", false],
  ["node_modules/@huggingface/transformers/dist/transformers.node.mjs", true],
  ["node_modules/@huggingface/transformers/dist/transformers.web.js", false],
  ["node_modules/pino/pino.d.ts", false],
  ["node_modules/mathjs/lib/esm/index.js", true],
  ["node_modules/mathjs/lib/cjs", false],
])("%s: %s", (file, needed) => {
  expect(isNeeded(file)).toBe(needed);
});
