/**
 * AdamW with a float32 master. A bfloat16 weight keeps the 16 bits it lacks beside it: weight and low bits together are an exact float32
 * number, so an update of 1e-6 is not lost to rounding and costs no second copy of the weights.
 *
 * Moments and low bits lie flat, as gradients do (gradients.ts), so one kernel updates all parameters. Nothing here waits for the device.
 *
 * Of several ranks each keeps the state of an equal part of each bucket (flat-layout.ts): gradients are summed into the part of their rank, which
 * updates its weights; those go to the other ranks, a bucket at a time, while the next one is updated. A part may begin and end inside a parameter.
 */

import type { Config } from "../config/schema.ts";
import { ALONE, type Ranks } from "../distributed/ranks.ts";
import { CheckpointError } from "../errors.ts";
import type { Parameter } from "../model/parameter.ts";
import { hash64 } from "../random.ts";
import { op } from "../torch/dispatch.ts";
import type { PendingCollective } from "../torch/distributed.ts";
import { cast, copy_, mul, sqrt, stack, sum, zeros } from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import type { Tensor } from "../torch/tensor.ts";
import { bucketLayout } from "./flat-layout.ts";
import { flattenWeights } from "./flat-weights.ts";
import { type Backward, type Gradients, WholeGradients } from "./gradients.ts";
import { createMoments, MOMENT_DTYPES, type MomentKind, type Moments } from "./moments.ts";
import { byRate, freeShare, type Share, type StateEntry, segments, sharesOf } from "./optimizer-shares.ts";
import { ShardedGradients } from "./sharded-gradients.ts";

const adamw = op("grove::adamw_");
const normOf = op("grove::grad_norm");

export class AdamW implements Disposable {
  readonly #config: Config["optimizer"];
  readonly #ranks: Ranks;
  readonly #shares: Share[]; // of each bucket
  readonly #gradients: Gradients;
  readonly #weights: Tensor | null; // flat, of several ranks
  readonly #low: Tensor | null; // int16, of this rank's parts
  readonly #moments: Moments; // of this rank's parts
  #updates = 0;

  /**
   * Takes over the gradients of the parameters: from now on `tensor.grad` of each is a view of memory of the optimizer.
   * @param seed with a parameter's name, the number of the update and the place in the parameter, the key of what rounds moments of few bits
   * @param ranks that make the same updates together; their weights move into one flat buffer
   * @param options.shardGradients every rank keeps its parts of the gradients alone
   * @param options.rateOf a parameter's learning rate as a multiple of step()'s; default: 1
   */
  constructor(
    parameters: readonly Parameter[],
    config: Config["optimizer"],
    seed = 0,
    ranks: Ranks = ALONE,
    options: { shardGradients?: boolean; rateOf?: (parameter: string) => number } = {},
  ) {
    this.#config = config;
    this.#ranks = ranks;
    const { device, dtype } = (parameters[0] as Parameter).tensor;
    const layout = bucketLayout(
      parameters.map(({ name, tensor: { numel } }) => ({ name, numel })),
      ranks.world,
    );
    const { starts, size } = layout;
    const own = size / ranks.world;
    this.#weights = ranks.world > 1 ? flattenWeights(parameters, starts, size) : null;
    const isSharded = options.shardGradients === true && ranks.world > 1;
    this.#gradients = new (isSharded ? ShardedGradients : WholeGradients)(parameters, layout, ranks);
    this.#low = dtype === "bfloat16" ? keep(zeros([own], { dtype: "int16", device })) : null;
    this.#moments = createMoments(config.moments, own, device, config.offload);
    const keyed = parameters.map(({ name, tensor }) => {
      const rate = options.rateOf?.(name) ?? 1;
      return { name, weight: tensor, key: hash64(seed, "moments", name), rate };
    });
    const buffers = { ...this.#moments.whole, low: this.#low, weights: this.#weights };
    this.#shares = sharesOf(keyed, layout, ranks, { ...buffers, gradients: this.#gradients.own });
  }

  /** Updates made so far, over all sessions of a run. */
  get updates(): number {
    return this.#updates;
  }

  /** Clears gradients, for an update from so many backward passes of this rank: all of those through backward(), or none. */
  zeroGrad(passes = 0): void {
    this.#gradients.begin(passes);
  }

  /** The backward pass of a part of the batch. */
  backward(run: Backward): void {
    this.#gradients.backward(run);
  }

  /** Makes the gradients, each rank's of its share of a batch, those of the whole batch, each rank's in its parts. */
  sumGradients(): void {
    this.#gradients.reduce();
  }

  /** Global norm of all gradients, of all parts: a float32 scalar on the device, owned by the caller. */
  gradNorm(): Tensor {
    const { own } = this.#gradients;
    if (this.#ranks.world === 1) return normOf(own[0] as Tensor);
    return scope(() => {
      const norms = cast(stack(own.map((part) => normOf(part))), "float64");
      const squares = sum(mul(norms, norms));
      this.#ranks.group?.allReduce(squares).wait();
      return cast(sqrt(squares), "float32");
    });
  }

  /**
   * One update, of this rank's parts; the other parts come from their ranks. `gradNorm` is what gradNorm() returned: gradients are scaled by
   * min(1, maxGradNorm / (norm + 1e-6)) as torch's clip_grad_norm_ does it, on the device. Where it is not finite the device leaves weights and state as
   * they are; it is for the caller to read the norm some time and to stop, since the update is counted all the same.
   *
   * The last bucket comes first: those of the language model take a device longer than it takes the host to enqueue one, those of the tower do not, and
   * nothing follows the last one that its gathering could be hidden behind.
   */
  step(learningRate: number, gradNorm: Tensor): void {
    const { beta1, beta2, eps, weightDecay, maxGradNorm } = this.#config;
    this.#updates++;
    const cuts = this.#shares.slice(1).map(({ begin }) => begin);
    const arriving: PendingCollective[] = [];
    let at = this.#shares.length - 1;
    this.#moments.update(({ m, v, mScale, vScale }, begin) => {
      const share = this.#shares[at] as Share;
      scope(() => {
        for (const run of byRate(share, { m, v, mScale, vScale }, begin - share.begin)) {
          const moments = [run.m, run.v, run.mScale, run.vScale, gradNorm, run.at];
          const rates = [maxGradNorm, learningRate * run.rate, beta1, beta2, eps, weightDecay, this.#updates];
          adamw(...segments(share.slots), share.grad, share.low, ...moments, ...rates);
        }
      });
      if (begin > share.begin) return;
      const { group } = this.#ranks;
      if (group !== null && share.weights !== null) arriving.push(group.allGather(share.weights));
      at--;
    }, cuts);
    for (const weights of arriving) weights.wait();
  }

  /**
   * What a checkpoint keeps of this rank's part, by `<parameter>.<kind>`: m and v as optimizer.moments says, the scales of 8-bit ones, low bits of
   * bfloat16 weights. The tensors stay the optimizer's; with optimizer.offload they are on the host.
   */
  state(): StateEntry[] {
    this.#moments.settle();
    return this.#shares.flatMap(({ slots }) => slots.flatMap(({ state }) => state));
  }

  /**
   * Takes up a saved state, of any number of ranks. `read` gives what is saved of an entry, all of it or its part, or undefined.
   * @throws CheckpointError naming the first tensor that is missing or has another shape, or the knob for moments of another type.
   */
  restore(updates: number, read: (entry: StateEntry) => Tensor | undefined, file: string): void {
    for (const [i, entry] of this.state().entries()) {
      const { name, tensor } = entry;
      scope(() => {
        const saved = read(entry);
        if (saved === undefined) throw new CheckpointError(file, `optimizer state ${name} is missing`);
        if (i === 0) this.#requireMoments(saved, file);
        if (saved.shape.join() !== tensor.shape.join() || saved.dtype !== tensor.dtype) {
          const wanted = `${tensor.dtype} [${tensor.shape}]`;
          throw new CheckpointError(file, `${name}: expected ${wanted}, got ${saved.dtype} [${saved.shape}]`);
        }
        copy_(tensor, saved);
      });
    }
    this.#updates = updates;
  }

  #requireMoments(saved: Tensor, file: string): void {
    const { moments } = this.#config;
    if (saved.dtype === MOMENT_DTYPES[moments]) return;
    const kinds = Object.keys(MOMENT_DTYPES) as MomentKind[];
    const kind = kinds.find((candidate) => MOMENT_DTYPES[candidate] === saved.dtype);
    throw new CheckpointError(
      file,
      `holds moments of ${kind ?? saved.dtype}, and optimizer.moments is ${moments}: a run keeps the type it began with`,
    );
  }

  [Symbol.dispose](): void {
    for (const share of this.#shares) freeShare(share);
    this.#gradients[Symbol.dispose]();
    this.#moments[Symbol.dispose]();
    this.#weights?.free(); // the parameters keep the memory
    this.#low?.free();
  }
}
