/** Runs one script in several processes, each with its rank: for tests of what ranks do together. */

import { type ChildProcess, spawn } from "node:child_process";
import { createServer } from "node:net";

export interface RankResult {
  status: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

/** A port that is free now. */
export function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address() as { port: number };
      server.close(() => resolve(port));
    });
  });
}

/** Runs `script` (TypeScript) on `world` ranks with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set, to the end of all. */
export async function spawnRanks(
  world: number,
  script: string,
  args: readonly string[] = [],
  onSpawn: (children: readonly ChildProcess[]) => void = () => {},
): Promise<RankResult[]> {
  const port = await freePort();
  const started = Array.from({ length: world }, (_, rank) => {
    const child = spawn(process.execPath, ["--import", "tsx", script, ...args], {
      stdio: ["ignore", "pipe", "pipe"],
      env: {
        ...process.env,
        OMP_NUM_THREADS: "1",
        GROVE_LOG_LEVEL: "warn",
        RANK: String(rank),
        WORLD_SIZE: String(world),
        LOCAL_RANK: String(rank),
        LOCAL_WORLD_SIZE: String(world),
        MASTER_ADDR: "127.0.0.1",
        MASTER_PORT: String(port),
      },
    });
    const result: RankResult = { status: null, signal: null, stdout: "", stderr: "" };
    child.stdout.on("data", (data) => {
      result.stdout += data;
    });
    child.stderr.on("data", (data) => {
      result.stderr += data;
    });
    const ended = new Promise<RankResult>((resolve) => {
      child.once("close", (status, signal) => resolve({ ...result, status, signal }));
    });
    return { child, ended };
  });
  onSpawn(started.map(({ child }) => child));
  return Promise.all(started.map(({ ended }) => ended));
}
