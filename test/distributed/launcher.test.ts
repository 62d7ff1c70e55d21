import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { afterAll, afterEach, expect, test, vi } from "vitest";
import { launchRanks, launchWithRestarts } from "../../src/distributed/launcher.ts";
import { RankError } from "../../src/errors.ts";
import { capture } from "../cli/capture.ts";

const folder = mkdtempSync(path.join(tmpdir(), "grove-launcher-"));
afterEach(() => vi.restoreAllMocks());
afterAll(() => rmSync(folder, { recursive: true }));

let scripts = 0;

/** What a rank's program begins with: its number, and how it waits until all ranks have come as far, however slowly they start. */
const PRELUDE = `
  import { existsSync, writeFileSync } from "node:fs";
  const rank = Number(process.env.GROVE_RANK);
  const sign = (of) => process.argv[1] + "." + of;
  const allAreUp = async () => {
    writeFileSync(sign(rank), "");
    for (let of = 0; of < Number(process.env.GROVE_WORLD_SIZE); of++)
      while (!existsSync(sign(of))) await new Promise((resolve) => setTimeout(resolve, 10));
  };
`;

/** Ranks that run `body`. */
function ranks(count: number, body: string, more: object = {}) {
  const file = path.join(folder, `script-${scripts++}.mjs`);
  writeFileSync(file, `${PRELUDE}${body}\n`);
  return { program: process.execPath, args: [file], count, folder: path.join(folder, `logs-${scripts}`), ...more };
}

const logOf = (launch: { folder: string }, rank: number) =>
  readFileSync(path.join(launch.folder, `rank-${rank}.log`), "utf8");
const gone = (pid: number) => {
  try {
    process.kill(pid, 0);
    return false;
  } catch {
    return true;
  }
};
const WAIT = "setInterval(() => {}, 1000);";

test("every rank is told its place, rank 0 speaks on the terminal, and all are kept in files", async () => {
  const out = capture(process.stdout);
  const errors = capture(process.stderr);
  const body = `
    const { GROVE_WORLD_SIZE, GROVE_LOCAL_RANK, GROVE_LOCAL_WORLD_SIZE, GROVE_MASTER_ADDR } = process.env;
    console.log([rank, GROVE_WORLD_SIZE, GROVE_LOCAL_RANK, GROVE_LOCAL_WORLD_SIZE, GROVE_MASTER_ADDR].join(" "));
    console.error("a word of rank " + rank);`;
  const launch = ranks(3, body);
  await launchRanks(launch);
  expect(out.text).toBe("0 3 0 3 127.0.0.1\n");
  expect(errors.text).toBe("a word of rank 0\n");
  for (const rank of [0, 1, 2]) {
    expect(logOf(launch, rank)).toContain(`${rank} 3 ${rank} 3 127.0.0.1\n`);
    expect(logOf(launch, rank)).toContain(`a word of rank ${rank}\n`);
  }
});

test("the second of two machines starts the later ranks", async () => {
  const launch = ranks(
    2,
    "const { GROVE_MASTER_ADDR, GROVE_MASTER_PORT } = process.env; console.log(GROVE_MASTER_ADDR + ':' + GROVE_MASTER_PORT);",
    {
      nodes: { count: 2, index: 1, address: "machine-0", port: 77 },
    },
  );
  await launchRanks(launch);
  for (const rank of [2, 3]) expect(logOf(launch, rank)).toBe("machine-0:77\n");
});

test("a killed rank ends the others, one that will not end is killed, and the message names rank, step and log", async () => {
  capture(process.stdout);
  const body = `
    console.log(process.pid);
    process.on("SIGTERM", () => { console.log("told to end"); if (rank === 2) process.exit(0); });
    process.send({ step: 4 });
    await allAreUp();
    if (rank === 1) setTimeout(() => process.kill(process.pid, "SIGKILL"), 300);
    ${WAIT}`;
  const launch = ranks(3, body, { graceMs: 3000 });
  const error = await launchRanks(launch).catch((caught: unknown) => caught);
  expect(error).toBeInstanceOf(RankError);
  const log = path.join(launch.folder, "rank-1.log");
  expect((error as Error).message).toBe(
    `rank 1 was ended by SIGKILL in step 5; the other ranks were ended; its log: ${log}`,
  );
  for (const rank of [0, 2]) expect(logOf(launch, rank)).toMatch(/^\d+\ntold to end\n$/);
  for (const rank of [0, 1, 2]) expect(gone(Number(/^\d+/.exec(logOf(launch, rank))?.[0]))).toBe(true);
});

test("of ranks that fail together the cause is told, not who waited for it", async () => {
  const errors = capture(process.stderr);
  const body = `
    if (rank === 0) { console.error("error [COLLECTIVE] rank 0: rank 1 has not come"); process.exit(1); }
    setTimeout(() => { console.error("error [DATA] q7: no such file\\n  hint: look"); process.exit(1); }, 100);`;
  const error = await launchRanks(ranks(2, body)).catch((caught: unknown) => caught);
  expect((error as Error).message).toMatch(
    /^rank 1 ended with status 1 before its first step was made; .*rank-1\.log\nerror \[DATA\] q7: no such file\n {2}hint: look$/,
  );
  expect(errors.text).toBe(""); // whoever catches the error prints it
});

test("a launcher whose ranks have failed leaves no timer behind that its process would stay for", () => {
  const launch = ranks(
    2,
    'console.error("error [COLLECTIVE] rank " + rank + ": the other has not come"); process.exit(1);',
  );
  const file = path.join(folder, "launches.mts");
  const launcher = fileURLToPath(new URL("../../src/distributed/launcher.ts", import.meta.url));
  writeFileSync(
    file,
    `import { launchRanks } from ${JSON.stringify(launcher)};
    await launchRanks(${JSON.stringify(launch)}).catch(() => {});
    process.stdout.write(process.getActiveResourcesInfo().filter((one) => one === "Timeout").join());`,
  );
  const { status, stdout, stderr } = spawnSync(process.execPath, ["--import", "tsx", file], { encoding: "utf8" });
  expect({ status, stdout }, stderr).toEqual({ status: 0, stdout: "" });
});

test("a rank that has told the others of its failure has time to end by itself: it is the cause, whoever ended before", async () => {
  const body = `
    const fail = (text, ms) => setTimeout(() => { console.error(text); process.exit(1); }, ms);
    if (rank === 1) fail("error [REWARD] out of memory", 7500);
    else fail("error [COLLECTIVE] rank " + rank + " of 3, in step 2: rank 1 has failed, in step 2, reward: out of memory", 100 + rank);`;
  const error = await launchRanks(ranks(3, body)).catch((caught: unknown) => caught);
  expect((error as Error).message).toMatch(/^rank 1 ended with status 1 .*\nerror \[REWARD\] out of memory$/);
});

test("a signal is handed on once, and ranks that end well on it are no failure", async () => {
  capture(process.stdout);
  const body = `
    let times = 0;
    process.on("SIGTERM", () => { console.log("signal " + ++times); setTimeout(() => process.exit(0), 300); });
    console.log("ready");
    ${WAIT}`;
  const launch = ranks(2, body);
  const running = launchRanks(launch);
  const ready = () =>
    [0, 1].every((rank) => {
      const file = path.join(launch.folder, `rank-${rank}.log`);
      return existsSync(file) && readFileSync(file, "utf8").includes("ready");
    });
  while (!ready()) await sleep(20);
  process.emit("SIGTERM", "SIGTERM");
  process.emit("SIGTERM", "SIGTERM");
  await running;
  for (const rank of [0, 1]) expect(logOf(launch, rank)).toBe("ready\nsignal 1\n");
});

test("a program that is not there is an error", async () => {
  await expect(launchRanks({ ...ranks(2, ""), program: path.join(folder, "none") })).rejects.toThrow(
    /^rank [01] could not be started: .*ENOENT/,
  );
});

/** Ranks, with flags, that say in their log what they were started with. */
const withFlags = (launch: ReturnType<typeof ranks>, flag: string) => ({ ...launch, args: [...launch.args, flag] });

test("until rank 0 has the run folder a restart is another start: it must not go on with an older run that is there", async () => {
  for (const reports of [false, true]) {
    const launch = ranks(
      2,
      `console.log(process.argv[2]);
      if (rank === 0 && ${reports}) await new Promise((resolve) => process.send({}, resolve));
      await allAreUp();
      setTimeout(() => rank === 1 ? process.kill(process.pid, "SIGKILL") : process.exit(0), 500);`,
    );
    capture(process.stdout);
    const running = launchWithRestarts(withFlags(launch, "overwrite"), withFlags(launch, "resume"), 1);
    await expect(running).rejects.toThrow(/^rank 1 was ended by SIGKILL before its first step/);
    // The log of the second attempt goes on behind that of the first.
    expect(logOf(launch, 1)).toBe(`overwrite\n${reports ? "resume" : "overwrite"}\n`);
  }
});

test("a signal that comes while the ranks of a failed job are ended keeps them from being started again", async () => {
  capture(process.stdout);
  const body = `
    console.log("up");
    process.on("SIGTERM", () => console.log("told to end"));
    process.send({ step: 3 });
    await allAreUp();
    if (rank === 1) setTimeout(() => process.kill(process.pid, "SIGKILL"), 300);
    ${WAIT}`;
  const launch = ranks(2, body, { graceMs: 4000 });
  const running = launchWithRestarts(launch, launch, 3);
  const file = path.join(launch.folder, "rank-0.log");
  while (!(existsSync(file) && readFileSync(file, "utf8").includes("told to end"))) await sleep(20);
  process.emit("SIGTERM", "SIGTERM");
  await expect(running).rejects.toThrow(/^rank 1 was ended by SIGKILL in step 4/);
  expect(logOf(launch, 1)).toBe("up\n");
});

test("a log that cannot be written ends no job", async () => {
  const out = capture(process.stdout);
  const launch = ranks(1, 'console.log("one"); console.error("two");');
  capture(process.stderr);
  mkdirSync(launch.folder);
  // Opened as any file; what is no number is refused, as a full disk refuses all. (/dev/full is not there in every container.)
  symlinkSync("/proc/self/oom_score_adj", path.join(launch.folder, "rank-0.log"));
  await launchRanks(launch);
  expect(out.text).toBe("one\n");
});
