import { expect, test } from "vitest";
import { type Parts, partAt, partPaths, walkParts } from "../../src/eval/parts.ts";

test.each([
  [{}, []],
  [{ domain: "Work" }, [[["domain", "Work"]]]],
  [{ scenario: "baking" }, [[["scenario", "baking"]]]],
  [
    { domain: "Hobbies", scenario: "baking" },
    [
      [
        ["domain", "Hobbies"],
        ["scenario", "baking"],
      ],
    ],
  ],
  [{ duration_group: 3600 }, [[["duration", "(900,3600]"]]]],
  [{ duration_group: "15" }, [[["duration", "(8,15]"]]]],
  [{ duration_group: 90 }, [[["duration", "90"]]]],
  [{ duration_group: "constructor" }, [[["duration", "constructor"]]]],
  [{ domain: 3, scenario: null, duration_group: null }, []],
  [{ domain: "" }, []],
])("%j belongs to %j", (fields, paths) => {
  expect(partPaths({ fields })).toEqual(paths);
});

test("parts may bear the names of an object's own members", () => {
  const parts: Parts = {};
  for (const name of ["constructor", "toString", "__proto"]) partAt(parts, [["domain", name]]).n++;
  expect([...walkParts(parts)].map(({ path, tally }) => [path[0]?.[1], tally.n])).toEqual([
    ["__proto", 1],
    ["constructor", 1],
    ["toString", 1],
  ]);
});
