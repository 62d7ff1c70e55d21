import { memoryStats } from "../torch/cuda.ts";
import { freeHostBytes } from "../torch/host-memory.ts";
import type { Device } from "../torch/tensor.ts";
import { AVAILABLE_SHARE } from "./memory-shares.ts";

/** What buffers of a rollout may fill: most of what is free, on the CPU half of it, since other processes want memory too. Bytes. */
export function availableBytes(device: Device): number {
  if (device === "cpu") return freeHostBytes() / 2;
  const { free, reserved, allocated } = memoryStats();
  return AVAILABLE_SHARE * (free + reserved - allocated);
}
