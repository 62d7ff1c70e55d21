import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { expect, test } from "vitest";
import { replaceFolder } from "../../src/trainer/files.ts";

test("a folder is replaced as a whole; of its neighbours only what an earlier attempt left goes", () => {
  const parent = mkdtempSync(path.join(tmpdir(), "grove-files-"));
  const folder = path.join(parent, "env");
  try {
    for (const name of [".env.tmp", ".env.old", "env"]) mkdirSync(path.join(parent, name));
    for (const name of [".env.tmp/half", ".env.old/gone", "env/before", ".env.local"])
      writeFileSync(path.join(parent, name), "");
    replaceFolder(folder, (temporary) => writeFileSync(path.join(temporary, "now"), "1"));
    expect(readdirSync(parent).sort()).toEqual([".env.local", "env"]);
    expect(readdirSync(folder)).toEqual(["now"]);

    const fails = (temporary: string) => {
      writeFileSync(path.join(temporary, "now"), "2");
      throw new Error("no room");
    };
    expect(() => replaceFolder(folder, fails)).toThrow("no room");
    expect(readdirSync(parent).sort()).toEqual([".env.local", "env"]);
    expect(readFileSync(path.join(folder, "now"), "utf8")).toBe("1");
  } finally {
    rmSync(parent, { recursive: true });
  }
});
