import { expect } from "vitest";
import { Rope } from "../../src/model/rope.ts";
import { cast } from "../../src/torch/ops.ts";
import { scope } from "../../src/torch/scope.ts";
import { gpuTest } from "../setup/gpu.ts";

gpuTest("the bfloat16 table, one kernel on CUDA, is the float32 table rounded", () => {
  const tokens = 37;
  const positions = Int32Array.from({ length: 3 * tokens }, (_, i) => (i * i * 31) % 9000);
  scope(() => {
    using rope = new Rope({ sections: [16, 24, 24], theta: 1e6, restart: false, device: "cuda" });
    const [ours, wide] = [rope.table(positions, "bfloat16"), rope.table(positions, "float32")];
    for (const part of ["cos", "sin"] as const) {
      expect(ours[part].shape).toEqual([tokens, 1, 128]);
      expect(ours[part].toNumbers()).toEqual(cast(wide[part], "bfloat16").toNumbers());
    }
  });
});
