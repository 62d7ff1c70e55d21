/** How much of a device's memory a rollout may take and keep; no tensor here, so that a dry run can ask without libtorch. */

/** Of what is free: estimates err, memory is in pieces, and on the CPU other processes want some. */
export const AVAILABLE_SHARE = 0.8;

/** Buffers of at most this share of the device's memory are kept, with their recordings, for the next rollout; an update has to do without them. */
export const KEPT_SHARE = 1 / 32;
