/**
 * Every error Grove raises on purpose. Each class builds its own message from typed arguments: who, what was expected, what came
 * instead, what to do. `details` goes to the log as fields.
 */

export class GroveError extends Error {
  readonly code: string;
  readonly details: Record<string, unknown>;

  constructor(code: string, message: string, details: Record<string, unknown> = {}, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = new.target.name;
    this.code = code;
    this.details = details;
  }
}

/** A config file, a `--set`, or a combination of knobs that cannot be used. */
export class ConfigError extends GroveError {
  constructor(message: string, details: Record<string, unknown> = {}) {
    super("CONFIG", message, details);
  }
}

/** A record's place as messages name it: `file`, `file:line` or `file:line:column`. */
export function placeName({ file, line, column }: { file: string; line?: number; column?: number }): string {
  return [file, line, column].filter((part) => part !== undefined).join(":");
}

/** A record of a data set that cannot be used. */
export class DataError extends GroveError {
  constructor(
    where: { file: string; line?: number; column?: number; sampleId?: string; field?: string; isMissing?: boolean },
    problem: string,
    cause?: unknown,
  ) {
    const at = placeName(where);
    const sample = where.sampleId === undefined ? "" : ` (sample ${where.sampleId})`;
    super("DATA", `${at}${sample}: ${problem}`, { ...where }, cause);
  }
}

/** A video or image file that is missing, broken or too short. */
export class MediaError extends GroveError {
  constructor(file: string, problem: string, details: Record<string, unknown> = {}, cause?: unknown) {
    super("MEDIA", `${file}: ${problem}`, { file, ...details }, cause);
  }
}

/** A prompt longer than the limit. Media tokens are never cut, so the sample is refused instead. */
export class PromptTooLongError extends GroveError {
  constructor(sampleId: string, tokens: number, limit: number) {
    super(
      "PROMPT_TOO_LONG",
      `sample ${sampleId}: prompt has ${tokens} tokens, the limit is ${limit}; raise data.maxPromptTokens, lower data.maxFrames or set data.onBadSample to skip`,
      { sampleId, tokens, limit },
    );
  }
}

/** A tensor whose shape is not what an operation needs. */
export class ShapeError extends GroveError {
  /** @param args all arguments in short, where one shape does not tell enough */
  constructor(op: string, expected: string, got: readonly number[], args?: string, cause?: unknown) {
    super("SHAPE", `${op}: expected ${expected}, got ${args ?? `[${got.join(", ")}]`}`, { op, expected, got }, cause);
  }
}

/** A tensor whose dtype is not what an operation needs. */
export class DTypeError extends GroveError {
  constructor(op: string, expected: string, got: string, cause?: unknown) {
    super("DTYPE", `${op}: expected ${expected}, got ${got}`, { op, expected, got }, cause);
  }
}

/** A tensor that was used after it had been freed. */
export class UseAfterFreeError extends GroveError {
  constructor(op: string, handle: number) {
    super(
      "USE_AFTER_FREE",
      `${op}: tensor #${handle} was freed already; return it from the scope that made it, or keep() it`,
      { op, handle },
    );
  }
}

/** An exception from libtorch, CUDA or our own C++ code, with the operation and its argument shapes. */
export class NativeError extends GroveError {
  constructor(op: string, args: string, cause: unknown) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    super("NATIVE", `${op}(${args}): ${reason}`, { op, args }, cause);
  }
}

/** The native addon or libtorch is missing or does not fit. */
export class AddonError extends GroveError {
  constructor(message: string, cause?: unknown) {
    super("ADDON", message, {}, cause);
  }
}

/** A checkpoint or model folder with missing, surplus, misshapen or damaged content. */
export class CheckpointError extends GroveError {
  constructor(path: string, problem: string, details: Record<string, unknown> = {}, cause?: unknown) {
    super("CHECKPOINT", `${path}: ${problem}`, { path, ...details }, cause);
  }
}

/** NaN or infinity where a finite number is needed. */
export class NumericsError extends GroveError {
  constructor(what: string, value: number, details: Record<string, unknown> = {}) {
    super("NUMERICS", `${what} is ${value}; the run stops before the weights are touched`, { what, value, ...details });
  }
}

/** A reward function that threw, hung or returned something that is not a finite number. */
export class RewardError extends GroveError {
  constructor(name: string, problem: string, details: Record<string, unknown> = {}, cause?: unknown) {
    super("REWARD", `reward "${name}": ${problem}`, { reward: name, ...details }, cause);
  }
}

/** A process of ours that shares the work with others and failed. */
export class ProcessError extends GroveError {
  constructor(who: string, how: string, output: string) {
    super("PROCESS", `${who} ${how}; the others were stopped${output === "" ? "" : `\n${output}`}`, { who, how });
  }
}

/** A rank of a job that failed, and took the job with it. */
export class RankError extends GroveError {
  /** Whether another attempt may fare better: not where ranks were told to end, nor where one failed by itself before it had made a step. */
  readonly mayRecover: boolean;

  /** @param step that the rank was making; undefined before the first one was made */
  constructor(
    rank: number,
    how: string,
    step: number | undefined,
    logFile: string,
    output: string,
    mayRecover: boolean,
  ) {
    const at = step === undefined ? "before its first step was made" : `in step ${step}`;
    const message = `rank ${rank} ${how} ${at}; the other ranks were ended; its log: ${logFile}`;
    super("RANK", `${message}${output === "" ? "" : `\n${output}`}`, { rank, how, step, logFile });
    this.mayRecover = mayRecover;
  }
}

/** A run that its GPUs have not the memory for, by the plan. */
export class MemoryError extends GroveError {
  constructor(problem: string, details: Record<string, unknown> & { hint: string }) {
    super("MEMORY", problem, details);
  }
}

/** A collective operation that failed or took too long, or ranks that do not find each other or do not fit together. */
export class CollectiveError extends GroveError {
  constructor(problem: string, details: Record<string, unknown> = {}, cause?: unknown) {
    super("COLLECTIVE", problem, details, cause);
  }
}

/** A broken assumption of our own code: never the user's fault. */
export class InvariantError extends GroveError {
  constructor(message: string) {
    super("INVARIANT", `${message}; this is a bug in Grove, please report it`);
  }
}

/** Asserts what our own code guarantees. User input is checked with the classes above instead. */
export function invariant(condition: unknown, message: string): asserts condition {
  if (!condition) throw new InvariantError(message);
}
