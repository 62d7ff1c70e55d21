import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { spawnRanks } from "../distributed/spawn-ranks.ts";
import { expectResults } from "./distributed-check.ts";

const SCRIPT = fileURLToPath(new URL("distributed-rank.ts", import.meta.url));

/** What each rank says of a case. */
async function outcomes(world: number, name: string) {
  const results = await spawnRanks(world, SCRIPT, [name]);
  return results.map(({ stdout, status }) => {
    expect(status).toBe(0);
    return JSON.parse(stdout);
  });
}

test.each([1, 2, 3])("collectives of %i ranks give what they promise, the same bits everywhere", async (world) => {
  expectResults(await outcomes(world, "results"));
});

test("a rank that does not come in time is named, with operation and sizes", async () => {
  const [waiting, late] = await outcomes(2, "late");
  expect(waiting).toEqual({
    error: "COLLECTIVE",
    message: "rank 0 of 2, all-reduce (sum) #1 of [6] float32: rank 1 has not come to it within 300 ms",
  });
  expect(late).toBe("late");
});

test("ranks that have lost step are told so", async () => {
  const all = await outcomes(2, "mismatch");
  const messages = all.map(({ message }) => message).join("\n");
  expect(messages).toMatch(/rank [01] of 2, all-reduce \(sum\) #0 of \[[68]\] float32: rank [01] is at another one/);
});

test("ranks that never join are named", async () => {
  const [first, second, third] = await outcomes(3, "absent");
  // on a busy machine a rank's process may itself take longer to start than the other one waits for it
  expect(first.message).toMatch(/^rank 0 of 3: these ranks have not joined within 1000 ms: (1, )?2$/);
  expect(second.message).toMatch(/^rank 1 of 3: these ranks have not joined within 1000 ms: 2$|could not join the job/);
  expect(third).toBe("never came");
});

test("the end of rank 0 is an error of the others, not a wait", async () => {
  const [first, second] = await spawnRanks(2, SCRIPT, ["gone for good"]);
  expect(first?.signal).toBe("SIGKILL");
  const { error, message } = JSON.parse(second?.stdout ?? "");
  expect(error).toBe("COLLECTIVE");
  expect(message).toMatch(/^rank 1 of 2, all-reduce \(sum\) #1 of \[1\] float32: .*rank 0, which keeps the store/);
});

test("parts must divide among the ranks", async () => {
  for (const { message } of await outcomes(2, "uneven"))
    expect(message).toBe("reduceScatter([5] float32): reduce-scatter: 5 elements do not divide among 2 ranks");
});

test("ranks that are not there, and dtypes that are not reduced, are refused before anybody waits", async () => {
  const [first, second] = await outcomes(2, "misuse");
  expect(first).toEqual(second);
  expect(first).toEqual({
    messages: [
      "broadcast([1] float32): rank 2 is none of the 2 ranks",
      "broadcast([1] float32): rank -1 is none of the 2 ranks",
      "sum([1] bool): all-reduce (sum): tensors of the dtype Bool are not reduced on the CPU",
      "reduceScatter([2] float16): reduce-scatter: tensors of the dtype Half are not reduced on the CPU",
    ],
    sum: [[2]],
  });
});
