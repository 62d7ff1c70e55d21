/**
 * Four suites. unit: no addon, runs anywhere. native: libtorch on the CPU. gpu: needs CUDA, else skips and says so. e2e: whole runs.
 * `npx vitest run --project unit` picks one. Files run in forked processes: libtorch is process-wide.
 */
import { defineConfig } from "vitest/config";

const UNIT = ["reward", "config", "data", "experiment", "cli", "scripts"].map(
  (folder) => `test/${folder}/**/*.test.ts`,
);
const GPU = "test/**/*.gpu.test.ts";
const E2E = "test/e2e/**/*.test.ts";

export default defineConfig({
  test: {
    pool: "forks",
    maxWorkers: 2,
    env: { OMP_NUM_THREADS: "1" }, // the workers share the cores; OpenMP threads that spin for one another would waste them
    projects: [
      {
        extends: true,
        test: { name: "unit", include: ["test/*.test.ts", ...UNIT], exclude: [GPU], testTimeout: 60_000 },
      },
      {
        extends: true,
        test: {
          name: "native",
          include: ["test/**/*.test.ts"],
          exclude: ["test/*.test.ts", ...UNIT, GPU, E2E],
          setupFiles: ["test/setup/no-leaks.ts"],
          testTimeout: 120_000,
          hookTimeout: 60_000,
        },
      },
      {
        extends: true,
        test: {
          name: "gpu",
          include: [GPU],
          setupFiles: ["test/setup/no-leaks.ts", "test/setup/gpu.ts"],
          testTimeout: 300_000,
        },
      },
      {
        extends: true,
        test: {
          name: "e2e",
          include: [E2E],
          exclude: [GPU],
          setupFiles: ["test/setup/no-leaks.ts"],
          testTimeout: 900_000,
          hookTimeout: 300_000,
        },
      },
    ],
  },
});
