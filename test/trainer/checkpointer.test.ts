/** Checkpoints written beside training: the same bytes as those written in place, of the step they name, whole or not there. */

import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import os, { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import type { Ranks } from "../../src/distributed/ranks.ts";
import { CheckpointError } from "../../src/errors.ts";
import { SafetensorsFile } from "../../src/model/safetensors.ts";
import { freeHostBytes, shareHostMemory } from "../../src/torch/host-memory.ts";
import { fill_, slice } from "../../src/torch/ops.ts";
import { keep, scope } from "../../src/torch/scope.ts";
import { type DType, fromArray, type Tensor } from "../../src/torch/tensor.ts";
import { type CheckpointFile, tensorFile } from "../../src/trainer/checkpoint.ts";
import { latestCheckpoint } from "../../src/trainer/checkpoint-folder.ts";
import { Checkpointer } from "../../src/trainer/checkpointer.ts";
import { Snapshot } from "../../src/trainer/snapshot.ts";
import { filesBelow } from "./files-below.ts";

let folder: string;
let tensors: Tensor[];
const open: Checkpointer[] = [];

beforeEach(() => {
  folder = mkdtempSync(path.join(tmpdir(), "checkpointer-"));
  tensors = (["float32", "bfloat16", "int16", "uint8"] as DType[]).map((dtype, i) =>
    keep(
      fromArray(
        Float64Array.from({ length: 3 * (41 + 2 * i) }, (_, j) => j % 97),
        [3, 41 + 2 * i],
        { dtype },
      ),
    ),
  );
});
afterEach(async () => {
  shareHostMemory(1);
  vi.restoreAllMocks();
  for (const checkpoints of open.splice(0)) await checkpoints.close();
  for (const tensor of tensors) tensor.free();
  rmSync(folder, { recursive: true });
});

function checkpointer(name: string, snapshot?: Snapshot, ranks?: Ranks): { checkpoints: Checkpointer; runDir: string } {
  const runDir = path.join(folder, name);
  mkdirSync(runDir);
  const checkpoints = new Checkpointer(runDir, { keepLast: 2, ...(snapshot && { snapshot }), ...(ranks && { ranks }) });
  open.push(checkpoints);
  return { checkpoints, runDir };
}

/** Whole tensors in one file, rows of them in another, and files that are no tensors. */
function files(): CheckpointFile[] {
  const entries = tensors.map((tensor, i) => {
    return { name: `t${i}`, dtype: tensor.dtype, shape: tensor.shape, read: () => tensor };
  });
  const rows = entries.map(({ name, dtype, shape: [, width], read }) => {
    return { name, dtype, shape: [2, width as number], read: () => slice(read(), 0, 1, 3) };
  });
  return [
    tensorFile("model/model.safetensors", rows),
    { name: "model/source.ts", copyOf: import.meta.filename },
    tensorFile("optimizer.safetensors", entries),
    { name: "state.json", bytes: Buffer.from("{}") },
  ];
}

function contentOf(checkpoint: string): Record<string, string> {
  return Object.fromEntries(
    filesBelow(checkpoint).map((name) => [name, readFileSync(path.join(checkpoint, name)).toString("base64")]),
  );
}

const hidden = (runDir: string) => readdirSync(runDir).filter((name) => name.startsWith("."));

test("written beside training, in place, or without room for a snapshot: the same bytes", async () => {
  const beside = checkpointer("beside");
  await beside.checkpoints.save(5, files());
  expect(existsSync(path.join(beside.runDir, "checkpoint-5")), "the caller does not wait for the disk").toBe(false);
  await beside.checkpoints.saved();
  const inPlace = checkpointer("in place");
  await inPlace.checkpoints.save(5, files(), { last: true });
  const noRoom = checkpointer("no room", new Snapshot(() => 100));
  await noRoom.checkpoints.save(5, files());

  const content = contentOf(path.join(inPlace.runDir, "checkpoint-5"));
  expect(Object.keys(content)).toHaveLength(5);
  expect(contentOf(path.join(beside.runDir, "checkpoint-5"))).toEqual(content);
  expect(contentOf(path.join(noRoom.runDir, "checkpoint-5"))).toEqual(content);
  expect([beside, inPlace, noRoom].flatMap(({ runDir }) => hidden(runDir))).toEqual([]);
});

test("a checkpoint holds the step it names, whatever becomes of the tensors right after; one is written at a time", async () => {
  const { checkpoints, runDir } = checkpointer("steps");
  for (let step = 1; step <= 4; step++) {
    for (const tensor of tensors) scope(() => fill_(tensor, step));
    await checkpoints.save(step, files());
    for (const tensor of tensors) scope(() => fill_(tensor, 99));
    // Saving waited for the one before.
    if (step > 1) expect(latestCheckpoint(runDir)).toBe(path.join(runDir, `checkpoint-${step - 1}`));
  }
  await checkpoints.saved();
  expect(readdirSync(runDir).sort()).toEqual(["checkpoint-3", "checkpoint-4"]);
  for (const step of [3, 4]) {
    using file = new SafetensorsFile(path.join(runDir, `checkpoint-${step}`, "optimizer.safetensors"));
    for (const name of file.names()) {
      const values = scope(() => file.tensor(name).toNumbers());
      expect(new Set(values), `${name} of checkpoint ${step}`).toEqual(new Set([step]));
    }
  }
});

test("how long training was held, and how long the writing took, are told once each", async () => {
  const { checkpoints } = checkpointer("metrics");
  await checkpoints.save(1, files());
  expect(Object.keys(checkpoints.takeMetrics())).toEqual(["time/checkpoint_s"]);
  await checkpoints.saved();
  expect(Object.keys(checkpoints.takeMetrics())).toEqual(["time/checkpoint_write_s"]);
  await checkpoints.save(2, files(), { last: true });
  expect(Object.keys(checkpoints.takeMetrics())).toEqual(["time/checkpoint_s"]);
  expect(checkpoints.takeMetrics()).toEqual({});
});

test.each([
  ["beside training", false],
  ["in place", true],
])("a failure of a checkpoint written %s is a CheckpointError, leaves nothing behind and the one before whole", async (name, last) => {
  const { checkpoints, runDir } = checkpointer(`failing ${name}`);
  await checkpoints.save(1, files());
  const broken = [...files(), { name: "lost", copyOf: path.join(folder, "nowhere") }];
  const saving = (async () => {
    await checkpoints.save(2, broken, { last });
    await checkpoints.saved();
  })();
  await expect(saving).rejects.toThrow(CheckpointError);
  expect(readdirSync(runDir)).toEqual(["checkpoint-1"]);
  expect(latestCheckpoint(runDir)).toBe(path.join(runDir, "checkpoint-1"));
  checkpoints.check(); // told once
  await checkpoints.save(3, files());
  await checkpoints.saved();
  expect(readdirSync(runDir).sort()).toEqual(["checkpoint-1", "checkpoint-3"]);
});

test("a failure is known at the next boundary without waiting, with the system's reason", async () => {
  const { checkpoints, runDir } = checkpointer("boundary");
  await checkpoints.save(2, [{ name: "lost", copyOf: path.join(folder, "nowhere") }]);
  await expect(checkpoints.saved()).rejects.toMatchObject({
    message: expect.stringMatching(/checkpoint-2: could not be written: ENOENT/),
    details: { path: path.join(runDir, "checkpoint-2"), code: "ENOENT" },
  });
});

test("whoever closes in the middle, as a run that ends with an error does, waits for what is in flight", async () => {
  const { checkpoints, runDir } = checkpointer("closed");
  await checkpoints.save(7, files());
  expect(latestCheckpoint(runDir)).toBeUndefined();
  await checkpoints.close();
  expect(latestCheckpoint(runDir)).toBe(path.join(runDir, "checkpoint-7"));
});

/** Rank 1 of 2; `post` takes what it tells rank 0, `othersHold` is whether rank 0 writes in place. */
const secondRank = (post: (key: string) => void, othersHold: boolean) =>
  ({ rank: 1, world: 2, group: { post }, any: (flag: boolean) => flag || othersHold }) as unknown as Ranks;

test("where rank 0 has no room for a snapshot the others hand their parts over before they go on, else beside training", async () => {
  for (const othersHold of [true, false]) {
    const posted: string[] = [];
    const ranks = secondRank((key) => posted.push(key), othersHold);
    const { checkpoints, runDir } = checkpointer(`held ${othersHold}`, undefined, ranks);
    await checkpoints.save(5, files());
    expect(posted).toEqual(othersHold ? ["checkpoint/5/1"] : []);
    await checkpoints.saved();
    expect(posted).toEqual(["checkpoint/5/1"]);
    expect(hidden(runDir)).toEqual([".part-5-1"]);
  }
});

test("what killed ranks have left of their parts goes with a later checkpoint, also where a run goes on with fewer ranks", async () => {
  const { checkpoints, runDir } = checkpointer("fewer");
  for (const left of [".part-4-3", "..part-5-3.tmp", "..part-6-1.tmp"]) mkdirSync(path.join(runDir, left));
  await checkpoints.save(5, files());
  await checkpoints.saved();
  expect(hidden(runDir)).toEqual(["..part-6-1.tmp"]); // a rank may be at it
});

test("a rank whose rank 0 has gone fails with an error, in the background too", async () => {
  const ranks = secondRank(() => {
    throw new Error("the store has gone");
  }, false);
  const { checkpoints } = checkpointer("lost", undefined, ranks);
  await checkpoints.save(5, files());
  await expect(checkpoints.saved()).rejects.toThrow("the store has gone");
});

test("in a container ranks share what its limit leaves beside all of them, not beside one", () => {
  const GIB = 2 ** 30;
  vi.spyOn(os, "freemem").mockReturnValue(1000 * GIB); // the machine's
  vi.spyOn(process.memoryUsage, "rss").mockReturnValue(10 * GIB);
  const limit = vi.spyOn(process, "constrainedMemory").mockReturnValue(100 * GIB);
  const shared = (ranks: number) => {
    shareHostMemory(ranks);
    return freeHostBytes() / GIB;
  };
  expect([1, 4, 10].map(shared)).toEqual([90, 15, 0]);
  limit.mockReturnValue(0); // no container
  expect([1, 4].map(shared)).toEqual([1000, 250]);
});

test("the ranks of a machine share what it has free for snapshots", async () => {
  const posted: string[] = [];
  shareHostMemory(1e12);
  const { checkpoints } = checkpointer(
    "crowded",
    undefined,
    secondRank((key) => posted.push(key), false),
  );
  await checkpoints.save(5, files()); // no room for one of so many: in place
  expect(posted).toEqual(["checkpoint/5/1"]);
});
