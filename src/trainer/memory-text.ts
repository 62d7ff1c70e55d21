/** The memory of a plan as lines, and the refusal of what cannot fit. */

import { MemoryError } from "../errors.ts";
import { ERROR_SHARE, type Fit, fitOf, outsideBytes, type Planned, type Remedy, remediesFor } from "./memory-fit.ts";
import { configOfRank, largestPack, type MemoryPart, sumOf } from "./plan.ts";
import { describePlan, percent, type RecomputeChoice, recomputeChoices, roomBeside } from "./recompute-plan.ts";
import { stateBytes } from "./sharded-memory.ts";

const WHEN: Record<MemoryPart["during"], string> = {
  always: "",
  rollout: ", in the rollout only",
  reference: ", while the reference is asked",
  update: ", in the update only",
};
/** Remedies that are told. */
const TOLD = 4;

/** @param of where the device is, or who named its memory */
export function memoryPlan(planned: Planned, of: string): { lines: string[]; refusal: MemoryError | null } {
  const { stage, config, shape, size, ranks } = planned;
  const fit = fitOf(planned);
  const host = stage === "eval" ? 0 : stateBytes(config, shape, ranks).host;
  const each = ranks > 1 ? `memory of each of ${ranks} ranks, on ${config.device}` : `memory on ${config.device}`;
  const mayFail = fit.verdict === "cannot" || fit.verdict === "tight";
  const remedies = mayFail ? remediesFor(planned) : [];
  return {
    lines: [
      ...(size === null || fit.recompute === null ? [] : recomputeLines(planned, fit.recompute)),
      `${each}, GiB; weights to optimizer exactly, the rest estimated, CUDA's own not counted`,
      ...fit.parts.map(({ name, bytes, during }) => `  ${name}: ${gib(bytes)}${WHEN[during]}`),
      ...(host > 0 ? [`  moments, in host memory and not counted: ${gib(host)}`] : []),
      size === null ? "  the rest is not known: prompt lengths are not" : `  at most: ${gib(fit.peak)}`,
      ...verdictLines(planned, fit, of),
      ...remedies.slice(0, TOLD).map((remedy) => `  it fits with ${describe(remedy)}`),
      ...(mayFail && remedies.length === 0 ? [`  ${noRemedy(planned)}`] : []),
    ],
    refusal: fit.verdict === "cannot" && config.device !== "cpu" ? refusal(planned, fit, of, remedies) : null,
  };
}

function describe({ text, needs }: Remedy): string {
  return `${text} (${gib(needs)} GiB)`;
}

function verdictLines({ config, ranks, device, size }: Planned, fit: Fit, of: string): string[] {
  if (size === null && fit.verdict !== "cannot") return [];
  const outside = outsideBytes(config, ranks);
  const sure = `+- ${gib(ERROR_SHARE * (fit.needs - outside))}`;
  const needed = `${gib(fit.needs)} ${sure} GiB${outside === 0 ? "" : `, about ${gib(outside)} of it CUDA's own`}`;
  const most = fit.needs - outside < fit.peak ? ", with as much computed again as may be" : "";
  if (device === null) return [`needs a GPU of ${needed}${most}; --device-memory says whether another one fits`];
  const room = `${gib(device)} GiB (${of})`;
  const words = { fits: "fits", tight: "may not fit", cannot: "does not fit", unknown: "is planned for" }[fit.verdict];
  return [`${words} ${room}: needs ${needed}${most}`];
}

function noRemedy({ config }: Planned): string {
  const larger = config.device === "cpu" ? "a machine with more memory" : "larger GPUs";
  return `no knob that was tried makes it fit: a smaller model, or ${larger}`;
}

function refusal(planned: Planned, fit: Fit, of: string, remedies: readonly Remedy[]): MemoryError {
  const { config, ranks, device, size } = planned;
  const what = size === null ? "weights, reference, gradients and optimizer alone need" : "needs";
  const largest = [...fit.parts].sort((a, b) => b.bytes - a.bytes).slice(0, 3);
  const parts = largest.map(({ name, bytes }) => `${name} ${gib(bytes)}`).join(", ");
  const hint =
    remedies.length === 0
      ? noRemedy(planned)
      : `it fits with ${remedies.slice(0, TOLD).map(describe).join("; or with ")}`;
  const gpus = ranks > 1 ? `each of ${ranks} ranks` : "this run";
  return new MemoryError(
    `${gpus} ${what} ${gib(fit.needs)} GiB on ${config.device}, +- ${gib(ERROR_SHARE * fit.needs)}, and ${of} has ${gib(device as number)} (largest: ${parts})`,
    { hint, ranks, needsGib: fit.needs / 2 ** 30, deviceGib: (device as number) / 2 ** 30 },
  );
}

/** What the largest pack computes again on this device; where the device is not known, on which device what. */
function recomputeLines({ stage, config, shape, size, ranks, device }: Planned, chosen: RecomputeChoice): string[] {
  const head = `computed again in the update (model.recompute: ${config.model.recompute})`;
  const say = ({ plan, share }: RecomputeChoice) =>
    `${describePlan(plan)}${share === 0 ? "" : `, ${percent(share)} of a forward`}`;
  if (size === null || device !== null) return [`${head}: ${say(chosen)}`];
  const choices = recomputeChoices(largestPack(stage, configOfRank(config, ranks), shape, size), config, shape);
  if (choices.length === 1) return [`${head}: ${say(chosen)}`];
  const parts = fitOf({ stage, config, shape, size, ranks, device }).parts;
  const beside = sumOf(parts, "always") + outsideBytes(config, ranks);
  const from = (choice: RecomputeChoice) =>
    `${say(choice)}: from ${gib(roomBeside.device(beside, choice.bytes))} GiB on`;
  return [`${head}, as little as fits the device`, ...worthTelling(choices).map((choice) => `  ${from(choice)}`)];
}

/** The first and last, and of those between whatever takes 5 % less than the one told before. */
function worthTelling(choices: readonly RecomputeChoice[]): RecomputeChoice[] {
  const told: RecomputeChoice[] = [];
  choices.forEach((choice, i) => {
    const before = told.at(-1);
    if (before === undefined || i === choices.length - 1 || choice.bytes < 0.95 * before.bytes) told.push(choice);
  });
  return told;
}

/** Two digits after the point, more for what would read as nothing. */
function gib(bytes: number): string {
  const value = bytes / 2 ** 30;
  return value >= 0.1 ? value.toFixed(2) : value.toPrecision(2);
}
