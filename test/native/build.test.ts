/** Finding libtorch and building the addon: a second run only looks, and every failure is one clear message. */
import { spawnSync } from "node:child_process";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

const root = fileURLToPath(new URL("../../", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "grove-build-"));
afterAll(() => rmSync(folder, { recursive: true }));

/** Runs `text` as a module in the project's root. PATH holds only what `tools` names, each a script or a link. */
function runModule(text: string, env: Record<string, string>): { status: number | null; output: string } {
  const { LIBTORCH: _, ...rest } = process.env;
  const child = spawnSync(process.execPath, ["--input-type=module", "-e", text], {
    cwd: root,
    encoding: "utf8",
    env: { ...rest, ...env },
  });
  return { status: child.status, output: child.stdout + child.stderr };
}

const find =
  'import { findLibtorch } from "./scripts/native/libtorch.mjs"; console.log(JSON.stringify(findLibtorch()));';

/** A folder that looks like a libtorch of this version. */
function fakeLibtorch(name: string, version: string): string {
  const dir = join(folder, name);
  mkdirSync(join(dir, "lib"), { recursive: true });
  mkdirSync(join(dir, "include", "ATen"), { recursive: true });
  writeFileSync(join(dir, "lib", "libtorch.so"), "");
  writeFileSync(join(dir, "version.py"), `__version__ = '${version}'\n`);
  return dir;
}

/** A PATH with a python3 that prints what it is told, and nothing else. */
function pathWith(name: string, python: string): string {
  const dir = join(folder, name);
  mkdirSync(dir);
  writeFileSync(join(dir, "python3"), `#!/bin/sh\n${python}\n`);
  chmodSync(join(dir, "python3"), 0o755);
  return dir;
}

describe("findLibtorch", () => {
  test("LIBTORCH comes first, as the folder itself or the one above", () => {
    const dir = fakeLibtorch("good/torch", "2.12.1+cu130");
    for (const LIBTORCH of [dir, join(folder, "good")]) {
      const found = JSON.parse(runModule(find, { LIBTORCH }).output);
      expect(found).toEqual({ dir, version: "2.12.1+cu130", cuda: false, source: "LIBTORCH" });
    }
    writeFileSync(join(dir, "lib", "libtorch_cuda.so"), "");
    expect(JSON.parse(runModule(find, { LIBTORCH: dir }).output).cuda).toBe(true);
  });

  test("a LIBTORCH that is empty or of another version is refused", () => {
    expect(runModule(find, { LIBTORCH: folder }).output).toContain("holds no libtorch");
    const old = fakeLibtorch("old", "2.4.0");
    expect(runModule(find, { LIBTORCH: old }).output).toContain("is torch 2.4.0; Grove needs 2.11 to 2.13");
  });

  test("a python3 with a torch of another version is passed over", () => {
    const old = fakeLibtorch("python-old", "2.4.0");
    const supported = fakeLibtorch("python-new", "2.11.0");
    const ask = (name: string, dir: string) =>
      JSON.parse(runModule(find, { PATH: pathWith(name, `echo ${dir}`) }).output);
    expect(ask("path-new", supported)).toMatchObject({ dir: supported, source: "python3" });
    const other = ask("path-old", old);
    expect(other === null || other.source === ".libtorch").toBe(true);
  });
});

test("an install that fails says what failed and what to do", () => {
  const install =
    'import { installLibtorch } from "./scripts/native/libtorch.mjs"; try { installLibtorch(() => {}); } catch (error) { console.log(error.message); }';
  const failing = pathWith("path-fail", 'echo "ERROR: No matching distribution found for torch" >&2; exit 1');
  const { output } = runModule(install, { PATH: failing });
  expect(output).toContain("libtorch could not be installed: ERROR: No matching distribution found for torch");
  expect(output).toContain("set LIBTORCH");
  expect(runModule(install, { PATH: join(folder, "nowhere") }).output).toContain("python3 was not found");
});

describe("buildNative", () => {
  const build = join(root, "scripts", "native", "build.mjs");
  let bin = "";
  beforeAll(() => {
    const python = spawnSync("python3", ["-c", "import sys; print(sys.executable)"], {
      encoding: "utf8",
    }).stdout.trim();
    bin = join(folder, "bin");
    mkdirSync(bin);
    if (existsSync(python)) symlinkSync(python, join(bin, "python3"));
    spawnSync(process.execPath, [build]); // the first run, in case a source has just changed
  }, 300_000);

  test("a second run only looks", () => {
    const { addon } = JSON.parse(readFileSync(join(root, "build", "native", "current.json"), "utf8"));
    const before = statSync(addon).mtimeMs;
    const child = spawnSync(process.execPath, [build], { encoding: "utf8" });
    expect((child.stdout + child.stderr).trim()).toBe(addon); // no word of compiling
    expect(statSync(addon).mtimeMs).toBe(before);
  });

  test.each([
    ["with libtorch", () => bin],
    ["without libtorch, which is not fetched then", () => pathWith("path-bare", "exit 1")],
  ])("a missing compiler is one message that says what to install: %s", (_, folders) => {
    const child = spawnSync(process.execPath, [build, "--force"], {
      encoding: "utf8",
      env: { ...process.env, PATH: folders() },
    });
    expect(child.status).toBe(1);
    expect(child.stderr.trim()).toMatch(/^no C\+\+ compiler: g\+\+ was not found\. Install it/);
    expect(child.stderr.trim().split("\n")).toHaveLength(1);
  });
});
