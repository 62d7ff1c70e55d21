/** The GPUs that this process may use, as the driver's tool sees them: no libtorch, so that a dry run and a launcher can ask. */

import { execFileSync } from "node:child_process";

export interface Gpu {
  bytes: number;
}

/** Visible GPUs in the order in which CUDA numbers them; none where there is no driver. */
export function visibleGpus(env: NodeJS.ProcessEnv = process.env): Gpu[] {
  return chooseGpus(query(), env.CUDA_VISIBLE_DEVICES);
}

/** A driver that does not answer within ten seconds counts as none. */
function query(): string {
  const args = ["--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"];
  try {
    return execFileSync("nvidia-smi", args, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"], timeout: 10_000 });
  } catch {
    return "";
  }
}

/** Those of nvidia-smi's lines `index, uuid, MiB` that CUDA_VISIBLE_DEVICES names, by number or by the beginning of a uuid; it ends at the first name of none. */
export function chooseGpus(listing: string, visible: string | undefined): Gpu[] {
  const all = listing
    .split("\n")
    .map((line) => line.split(",").map((cell) => cell.trim()))
    .filter(([, , mib]) => Number(mib) > 0)
    .map(([index, uuid, mib]) => ({ index, uuid, bytes: Number(mib) * 2 ** 20 }));
  if (visible === undefined) return all.map(({ bytes }) => ({ bytes }));
  const chosen: Gpu[] = [];
  for (const name of visible.split(",").map((one) => one.trim())) {
    const gpu = all.find(({ index, uuid }) => index === name || (name.length > 4 && uuid?.startsWith(name)));
    if (gpu === undefined) break;
    chosen.push({ bytes: gpu.bytes });
  }
  return chosen;
}
