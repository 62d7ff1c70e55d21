import type { Config } from "../config/schema.ts";

/** Steps of a run: trainer.steps, or as many as trainer.epochs over the data take. */
export function totalSteps({ trainer }: Config, datasetSize: number): number {
  return trainer.steps ?? Math.max(1, Math.ceil((trainer.epochs * datasetSize) / trainer.questionsPerStep));
}

/**
 * Learning rate of one update, as Hugging Face's schedulers give it: it rises linearly from 0 over ceil(total * warmupFraction)
 * updates (the first update of a warm-up has rate 0), then falls to 0 linearly, falls to 0 along half a cosine, or stays.
 * `update` counts from 0, `totalUpdates` is the number of updates of the whole run.
 */
export function learningRate(config: Config["optimizer"], update: number, totalUpdates: number): number {
  const warmup = Math.ceil(totalUpdates * config.warmupFraction);
  if (update < warmup) return (config.learningRate * update) / Math.max(1, warmup);
  const progress = Math.min(1, (update - warmup) / Math.max(1, totalUpdates - warmup));
  switch (config.schedule) {
    case "linear":
      return config.learningRate * (1 - progress);
    case "cosine":
      return config.learningRate * 0.5 * (1 + Math.cos(Math.PI * progress));
    case "constant":
      return config.learningRate;
    default:
      return config.schedule satisfies never;
  }
}
