/** The GPUs that this process may use, as the driver's tool sees them: no libtorch, so that a dry run and a launcher can ask. */

import { execFileSync } from "node:child_process";

export interface Gpu {
  bytes: number;
}

/** Visible GPUs in the order in which CUDA numbers them; none where there is no driver. */
export function visibleGpus(env: NodeJS.ProcessEnv = process.env): Gpu[] {
  const listing = ask(["--query-gpu=index,uuid,memory.total,mig.mode.current", "--format=csv,noheader,nounits"]);
  const slices = /Enabled/.test(listing) ? ask(["-L"]) : ""; // asked for only where GPUs are cut up
  return chooseGpus(listing, env.CUDA_VISIBLE_DEVICES, slices);
}

/** A driver that does not answer within ten seconds counts as none. */
function ask(args: readonly string[]): string {
  try {
    return execFileSync("nvidia-smi", args, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"], timeout: 10_000 });
  } catch {
    return "";
  }
}

interface Listed extends Gpu {
  index: string; // by which CUDA_VISIBLE_DEVICES may name it; a slice has none
  uuid: string;
}

/**
 * Those of nvidia-smi's lines `index, uuid, MiB, MIG mode` that CUDA_VISIBLE_DEVICES names, by number or by the beginning of a uuid; it ends at the first
 * name of none. In place of a GPU that is cut into MIG slices stand the first of those that `nvidia-smi -L` lists, of which a process sees no more than one,
 * or those that are named.
 */
export function chooseGpus(listing: string, visible: string | undefined, slices = ""): Gpu[] {
  const cut = slicesByGpu(slices);
  const all: Listed[] = [];
  for (const line of listing.split("\n")) {
    const [index = "", uuid = "", mib, mig] = line.split(",").map((cell) => cell.trim());
    if (!(Number(mib) > 0)) continue;
    const own = cut.get(index) ?? [];
    const [first] = own;
    if (mig !== "Enabled" || first === undefined) all.push({ index, uuid, bytes: Number(mib) * 2 ** 20 });
    else all.push({ ...first, index }, ...own.slice(1));
  }
  if (visible === undefined) {
    const slice = all.find(({ uuid }) => uuid.startsWith("MIG-"));
    return (slice === undefined ? all : [slice]).map(({ bytes }) => ({ bytes }));
  }
  const chosen: Gpu[] = [];
  for (const name of visible.split(",").map((one) => one.trim())) {
    const gpu = all.find(({ index, uuid }) => index === name || (name.length > 4 && uuid.startsWith(name)));
    if (gpu === undefined) break;
    chosen.push({ bytes: gpu.bytes });
  }
  return chosen;
}

/** From `GPU 0: ...` and, below it, `MIG 3g.20gb  Device  0: (UUID: MIG-...)`: a profile's name tells its memory in GB, to the whole. */
function slicesByGpu(text: string): Map<string, Listed[]> {
  const slices = new Map<string, Listed[]>();
  let gpu = "";
  for (const line of text.split("\n")) {
    gpu = /^GPU (\d+):/.exec(line)?.[1] ?? gpu;
    const [, gigabytes, uuid] = /^\s+MIG \S*?\.(\d+)gb\S*\s.*\(UUID: (MIG-[^)]+)\)/.exec(line) ?? [];
    if (uuid !== undefined)
      slices.set(gpu, [...(slices.get(gpu) ?? []), { index: "", uuid, bytes: Number(gigabytes) * 1e9 }]);
  }
  return slices;
}
