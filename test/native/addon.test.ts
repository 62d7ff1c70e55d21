/** The addon as a process-wide thing: one thread, a clean exit, faithful exports. */
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";
import { expect, test } from "vitest";
import { addon } from "../../src/torch/addon.ts";
import { opN, schemaOf } from "../../src/torch/dispatch.ts";

const source = (path: string): string => readFileSync(new URL(`../../${path}`, import.meta.url), "utf8");
const root = fileURLToPath(new URL("../../", import.meta.url));

/** Runs a module with the given text in a Node of its own. */
function runNode(text: string, env: Record<string, string> = {}): { status: number | null; output: string } {
  const child = spawnSync(process.execPath, ["--import", "tsx", "--input-type=module", "-e", text], {
    cwd: root,
    encoding: "utf8",
    env: { ...process.env, ...env },
  });
  return { status: child.status, output: child.stdout + child.stderr };
}

test("the export list in C++ and the typed contract name the same functions", () => {
  const exported = [...source("native/addon.cc").matchAll(/GROVE_EXPORT\((\w+)\),/g)].map((match) => match[1]!).sort();
  const contract = source("src/torch/addon.ts").split("export interface Addon {")[1]!.split("\n}\n")[0]!;
  const typed = [...contract.matchAll(/^ {2}(\w+)\(/gm)].map((match) => match[1]!).sort();
  expect(exported).toEqual(typed);
  for (const name of typed) expect(typeof addon[name as keyof typeof addon]).toBe("function");
});

test("our own operators are registered with the dispatcher", () => {
  expect(addon.listOps("grove::")).toContain("grove::adamw_");
  expect(schemaOf("grove::adamw_")).toContain("Tensor(b!)? low");
  expect(opN("aten::is_same_size")).toBeTypeOf("function");
});

test("a second thread of the process is refused with a reason", async () => {
  const current = JSON.parse(source("build/native/current.json")) as { addon: string };
  const code = `
    const { parentPort, workerData } = require("node:worker_threads");
    try { require(workerData); parentPort.postMessage("loaded"); } catch (error) { parentPort.postMessage(error.message); }`;
  const worker = new Worker(code, { eval: true, workerData: current.addon });
  const message = await new Promise<string>((done) => worker.once("message", done));
  await worker.terminate();
  expect(message).toContain("in use by another thread");
});

test("a process that ends with live tensors, graphs and generators exits cleanly", () => {
  const { status, output } = runNode(`
    import { enableGrad } from "./src/torch/autograd.ts";
    import { mul, ones, randn } from "./src/torch/ops.ts";
    import { Generator } from "./src/torch/random.ts";
    const w = ones([64]).setRequiresGrad(true);
    const y = enableGrad(() => mul(w, randn([64], { generator: new Generator(1) })));
    console.log(y.shape.join());`);
  expect(output.trim()).toBe("64");
  expect(status).toBe(0);
});

test("a missing or broken addon is one clear error", () => {
  const load = 'import("./src/torch/addon.ts").catch((error) => console.log(error.name + ": " + error.message));';
  const missing = runNode(load, { GROVE_ADDON: "/nonexistent/grove.node" });
  expect(missing.output).toContain("AddonError: the native addon /nonexistent/grove.node does not load");
  expect(missing.output).toContain("npm run setup");
  expect(missing.status).toBe(0);
});
