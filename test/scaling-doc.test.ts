/** docs/scaling.md: every recipe in it can be read by whoever it is for, and the variables it names are those that are read. */

import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { parse } from "yaml";
import { cli } from "../src/cli/main.ts";
import { capture } from "./cli/capture.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const page = readFileSync(path.join(root, "docs/scaling.md"), "utf8");
const blocks = [...page.matchAll(/^```(\w+)\n([\s\S]*?)^```$/gm)].map(([, language, text]) => ({
  language: language as string,
  text: text as string,
}));
const shell = blocks.filter(({ language }) => language === "sh").map(({ text }) => text);

/** The commands of ours in a recipe: the name and the flags behind `npm run`. */
const commands = shell.flatMap((text) =>
  [...text.replaceAll("\\\n", " ").matchAll(/npm run (grpo|sft) -- ([^#\n]*)/g)].map(([, name, flags]) => [
    name as string,
    ...(flags as string).trim().split(/\s+/),
  ]),
);

test("there is a recipe for each way", () => {
  for (const name of ["SLURM", "torchrun", "Open MPI", "By hand", "Docker", "Kubernetes"])
    expect(page).toMatch(new RegExp(`^### ${name}`, "m"));
  expect(blocks.map(({ language }) => language)).toEqual(expect.arrayContaining(["sh", "yaml", "dockerfile"]));
});

test.each(shell)("bash reads %#", (text) => {
  const { status, stderr } = spawnSync("bash", ["-n"], { input: text, encoding: "utf8" });
  expect(stderr).toBe("");
  expect(status).toBe(0);
});

test.each(commands.map((command) => [command.join(" "), command] as const))("%s", async (_text, command) => {
  capture(process.stdout);
  await cli([...command, "--dry-run"]).parseAsync(); // throws for an unknown flag or knob
});

test("SLURM's directives stand before the first command", () => {
  const [script] = shell.filter((text) => text.includes("#SBATCH"));
  const lines = (script as string).split("\n");
  const first = lines.findIndex((line) => line !== "" && !line.startsWith("#"));
  expect(lines.findLastIndex((line) => line.startsWith("#SBATCH"))).toBeLessThan(first);
  for (const line of lines.filter((text) => text.startsWith("#SBATCH")))
    expect(line).toMatch(/^#SBATCH --[a-z-]+(=[\w:@.-]+)?$/);
});

test("the Dockerfile", () => {
  const [file] = blocks.filter(({ language }) => language === "dockerfile");
  const lines = (file?.text ?? "").replaceAll("\\\n", " ").trim().split("\n");
  expect(lines[0]).toMatch(/^FROM \S+:\S+$/);
  for (const line of lines) expect(line).toMatch(/^(FROM|RUN|WORKDIR|COPY|CMD) \S/);
  for (const line of lines.filter((text) => text.startsWith("RUN "))) {
    const { stderr } = spawnSync("bash", ["-n"], { input: line.slice(4), encoding: "utf8" });
    expect(stderr).toBe("");
  }
  expect(JSON.parse((lines.at(-1) as string).slice(4))).toEqual(["npm", "run", "doctor"]);
});

test("the Kubernetes manifest: a rank for each GPU of a pod", async () => {
  const [manifest] = blocks.filter(({ language }) => language === "yaml");
  const job = parse(manifest?.text ?? "");
  expect(job).toMatchObject({ apiVersion: "kubeflow.org/v1", kind: "PyTorchJob" });
  const { Master, Worker } = job.spec.pytorchReplicaSpecs;
  expect(Worker).toEqual(Master);
  const [container] = Master.template.spec.containers;
  expect(container.name).toBe("pytorch");
  const { command, resources, volumeMounts } = container;
  expect(command.slice(0, 4)).toEqual(["npm", "run", "grpo", "--"]);
  expect(Number(command[command.indexOf("--nproc") + 1])).toBe(resources.limits["nvidia.com/gpu"]);
  const volumes = Master.template.spec.volumes.map(({ name }: { name: string }) => name);
  for (const { name } of volumeMounts) expect(volumes).toContain(name);
  capture(process.stdout);
  await cli(["grpo", ...command.slice(4), "--dry-run"]).parseAsync();
});

test("the table names the variables that are read", () => {
  const source = readFileSync(path.join(root, "src/distributed/environment.ts"), "utf8");
  const rows = page.split("\n").filter((line) => line.startsWith("|"));
  const named = rows.flatMap((row) => [...row.matchAll(/`([A-Z][A-Z_]+)`/g)].map(([, name]) => name as string));
  expect(new Set(named).size).toBeGreaterThan(15);
  for (const name of named) expect(source, name).toMatch(new RegExp(`\\b${name}\\b`));
});
