/** Decode steps as CUDA graphs: recorded once for each shape, replayed with one launch. */

import { CudaGraph, synchronize } from "../torch/cuda.ts";

/**
 * All graphs lie in one memory pool. That is sound in any order of replays, since a step leaves nothing there: what it hands on it writes into
 * buffers made before the capture.
 */
export class StepGraphs implements Disposable {
  private readonly graphs = new Map<string, CudaGraph>();
  private readonly warm = new Set<string>();
  private seconds = 0;

  /** Time spent recording, seconds. */
  get captureS(): number {
    return this.seconds;
  }

  /**
   * Runs `step`, whose kernels and addresses must be a function of `key`: kernel by kernel the first time, which loads libraries and makes
   * workspaces, then from a recording.
   */
  run(key: string, step: () => void): void {
    if (!this.warm.has(key)) {
      step();
      this.warm.add(key);
      return;
    }
    const graph = this.graphs.get(key) ?? this.capture(key, step);
    graph.replay();
  }

  [Symbol.dispose](): void {
    for (const graph of this.graphs.values()) graph[Symbol.dispose]();
    this.graphs.clear();
  }

  private capture(key: string, step: () => void): CudaGraph {
    synchronize(); // a capture waits for what is under way, which is no part of it
    const started = performance.now();
    const graph = new CudaGraph();
    const [other] = this.graphs.values();
    try {
      graph.capture(step, other === undefined ? {} : { poolOf: other });
    } catch (error) {
      graph[Symbol.dispose]();
      throw error;
    }
    this.graphs.set(key, graph);
    this.seconds += (performance.now() - started) / 1000;
    return graph;
  }
}
