/** One rank of ranks.test.ts: gathers values whose sizes differ among the ranks. */

import { readPlace } from "../../src/distributed/environment.ts";
import { joinRanks } from "../../src/distributed/ranks.ts";

const place = readPlace(process.env);
if (place === null) throw new Error("RANK is not set");
const ranks = joinRanks(place, { nccl: false, timeoutMs: 60_000 });
const sizes: number[][] = JSON.parse(process.argv[2] as string);
const seen = sizes.map((lengths) => {
  const own = String(ranks.rank).repeat(lengths[ranks.rank] as number);
  return ranks.gather(own).map((text) => [text[0], text.length, new Set(text).size]);
});
process.stdout.write(JSON.stringify(seen));
await ranks.leave();
