import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, expect, test } from "vitest";
import { render } from "../../scripts/doctor.mjs";
import { fingerprint } from "../../scripts/lib/fingerprint.mjs";
import { withLock } from "../../scripts/lib/lock.mjs";
import { describeProblem, SetupProblem } from "../../scripts/lib/problem.mjs";
import { which } from "../../scripts/lib/tools.mjs";
import { checkNode, npmFailure } from "../../scripts/setup.mjs";

const folder = mkdtempSync(path.join(tmpdir(), "grove-setup-"));
afterAll(() => rmSync(folder, { recursive: true }));
const script = (name: string) => fileURLToPath(new URL(`../../scripts/${name}`, import.meta.url));

test("Node's version is compared with what package.json asks for", () => {
  for (const version of ["20.19.0", "20.20.2", "22.0.0"]) expect(() => checkNode(version)).not.toThrow();
  for (const version of ["18.20.4", "20.18.3"]) expect(() => checkNode(version)).toThrow(`Node ${version} is too old`);
});

test("a problem is one message with its remedy, a bug keeps its stack", () => {
  expect(describeProblem(new SetupProblem("no g++", "apt-get install -y g++"))).toBe(
    "set-up stopped: no g++\n  to mend it: apt-get install -y g++",
  );
  expect(describeProblem(new TypeError("oops"))).toContain("setup.test.ts");
});

test("npm's failure is one line that says whether the registry was reached", () => {
  const offline =
    "npm error code ENOTFOUND\nnpm error network request to https://x failed\nnpm error A complete log of this run";
  expect(npmFailure(offline)).toBe(
    "npm ci failed (the npm registry could not be reached): network request to https://x failed",
  );
  expect(npmFailure("npm error `npm ci` can only install with a lock\n")).toBe(
    "npm ci failed: `npm ci` can only install with a lock",
  );
});

test("a fingerprint sees new, changed and vanished files", () => {
  const dir = path.join(folder, "sources");
  mkdirSync(path.join(dir, "inner"), { recursive: true });
  writeFileSync(path.join(dir, "inner/a"), "1");
  const seen = new Set([fingerprint([dir])]);
  writeFileSync(path.join(dir, "b"), "1");
  seen.add(fingerprint([dir]));
  utimesSync(path.join(dir, "inner/a"), 1, 1);
  seen.add(fingerprint([dir]));
  rmSync(path.join(dir, "b"));
  seen.add(fingerprint([dir]));
  expect(seen.size).toBe(4);
  expect(fingerprint([path.join(folder, "nothing")])).toContain(" missing");
});

test("work under a lock never overlaps", async () => {
  const lock = path.join(folder, "lock");
  let inside = 0;
  let most = 0;
  const work = async () => {
    most = Math.max(most, ++inside);
    await new Promise((done) => setTimeout(done, 20));
    inside--;
  };
  await Promise.all([1, 2, 3, 4].map(() => withLock(lock, work, { pollMs: 5 })));
  expect(most).toBe(1);
  expect(existsSync(lock)).toBe(false);
  await expect(withLock(lock, () => Promise.reject(new Error("inner")))).rejects.toThrow("inner");
  expect(existsSync(lock)).toBe(false);
});

test("a dead owner's lock is taken over, a living one is waited for", async () => {
  const lock = path.join(folder, "owned");
  writeFileSync(lock, String(spawnSync(process.execPath, ["-e", ""]).pid)); // has ended
  expect(await withLock(lock, () => "taken", { pollMs: 5 })).toBe("taken");

  const owner = spawn(process.execPath, ["-e", "setTimeout(() => {}, 60000)"]);
  writeFileSync(lock, String(owner.pid));
  const waited: number[] = [];
  const result = withLock(lock, () => "later", { pollMs: 5, onWait: (pid: number) => waited.push(pid) });
  await new Promise((done) => setTimeout(done, 60));
  expect(waited).toEqual([owner.pid]);
  owner.kill("SIGKILL");
  expect(await result).toBe("later");
});

test("a lock without an owner's id is waited for, and taken over once it is old: its owner died before it wrote", async () => {
  const lock = path.join(folder, "nameless");
  writeFileSync(lock, "");
  const result = withLock(lock, () => "taken", { pollMs: 5 });
  await new Promise((done) => setTimeout(done, 60));
  expect(readFileSync(lock, "utf8")).toBe(""); // may be writing it just now
  utimesSync(lock, 1, 1);
  expect(await result).toBe("taken");
});

test("which finds programs on PATH only", () => {
  expect(which("node")).toMatch(/node$/);
  expect(which("no-such-program-of-grove")).toBeUndefined();
});

test("doctor's report is aligned and ends with what mends", () => {
  const text = render([
    { name: "node", state: "ok", text: "v20" },
    { name: "compiler", state: "missing", text: "no g++", remedy: "apt-get install -y g++" },
  ]);
  expect(text).toBe(
    "node      ok       v20\ncompiler  MISSING  no g++\n\nto mend:\n  compiler  apt-get install -y g++\n",
  );
});

test("doctor looks at the ffmpeg that a run would call, even where another one would do", () => {
  const env = { ...process.env, FFMPEG_PATH: "/no/such/ffmpeg" };
  const { stdout, status } = spawnSync(process.execPath, [script("doctor.mjs")], { encoding: "utf8", env });
  expect(stdout).toMatch(/^ffmpeg +MISSING +\/no\/such\/ffmpeg \(FFMPEG_PATH\) does not run$/m);
  expect(status).toBe(1);
});

test("doctor runs without packages and names what it looked for", () => {
  const { stdout, stderr } = spawnSync(process.execPath, [script("doctor.mjs")], { encoding: "utf8" });
  expect(stderr).toBe("");
  for (const name of ["node", "packages", "libtorch", "addon", "gpu", "nvcc", "compiler", "ffmpeg", "memory", "disk"]) {
    expect(stdout).toMatch(new RegExp(`^${name} +(ok|note|MISSING) +\\S`, "m"));
  }
});
