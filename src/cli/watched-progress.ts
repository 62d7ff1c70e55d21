/** A command that trains or evaluates has its own progress watched, alone or as a rank: one that hangs says where, and ends. */

import type { Config } from "../config/schema.ts";
import { onOperation } from "../distributed/operation.ts";
import { whereabouts } from "../distributed/ranks.ts";
import { ProgressWatch } from "../torch/progress.ts";

/** Watches this process until what is returned is disposed of. `config`: as this process runs it, with its own device. */
export function watchedProgress({ device, distributed }: Config, own: { who: string; log?: string }): Disposable {
  const { stallS, timeoutS } = distributed;
  if (stallS === 0) return { [Symbol.dispose]: () => {} };
  const index = device === "cpu" ? -1 : Number(/^cuda:(\d+)$/.exec(device)?.[1] ?? 0);
  const limits = { limitMs: stallS * 1000, patienceMs: timeoutS * 1000 };
  const watch = new ProgressWatch({ ...limits, device: index, who: own.who, where: whereabouts(own.log) });
  const forget = onOperation((text) => watch.operation(text));
  return {
    [Symbol.dispose]: () => {
      forget();
      watch[Symbol.dispose]();
    },
  };
}
