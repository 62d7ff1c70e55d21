/** The shapes written down for plans are those of the released config.json files. */

import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { parseConfig } from "../../../src/model/qwen2vl/config.ts";
import { type ReleasedSize, releasedConfig, releasedSize } from "../../../src/model/qwen2vl/released.ts";

test.each(["2B", "7B", "72B"] as ReleasedSize[])("%s", (size) => {
  const file = new URL(`../../fixtures/qwen2vl-shapes/${size.toLowerCase()}.json`, import.meta.url);
  const { text, vision, tieWordEmbeddings, imageTokenId, videoTokenId } = parseConfig(
    JSON.parse(readFileSync(file, "utf8")),
  );
  expect(releasedConfig(size)).toMatchObject({ text, vision, tieWordEmbeddings, imageTokenId, videoTokenId });
});

test("a folder's name tells the size", () => {
  expect(releasedSize("models/Qwen2-VL-7B-Instruct")).toBe("7B");
  expect(releasedSize("/data/qwen2-vl-72b")).toBe("72B");
  expect(releasedSize("Qwen2-VL-2B")).toBe("2B");
  expect(releasedSize("models/Qwen2.5-VL-7B")).toBeUndefined();
  expect(releasedSize("qwen2-vl-7bx")).toBeUndefined();
});
