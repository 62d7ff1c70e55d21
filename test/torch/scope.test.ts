import { describe, expect, test } from "vitest";
import { InvariantError, UseAfterFreeError } from "../../src/errors.ts";
import { add, mul, ones, split, zeros } from "../../src/torch/ops.ts";
import { keep, liveTensors, scope } from "../../src/torch/scope.ts";
import type { Tensor } from "../../src/torch/tensor.ts";

describe("scope", () => {
  test("frees what is made inside, except what is returned", () => {
    const before = liveTensors();
    let inner: Tensor | undefined;
    const result = scope(() => {
      inner = ones([2]);
      return add(inner, 1);
    });
    expect(liveTensors().count).toBe(before.count + 1);
    expect(result.toNumbers()).toEqual([2, 2]);
    expect(inner!.isFreed).toBe(true);
    expect(() => inner!.toArray()).toThrow(UseAfterFreeError);
    result.free();
    expect(liveTensors()).toEqual(before);
  });

  test("finds tensors in arrays, objects, Maps, Sets and class instances, cycles included", () => {
    class Holder {
      weight = ones([1]);
      nested = { list: [ones([1])] };
      self: Holder = this;
    }
    const before = liveTensors();
    const made = scope(() => {
      zeros([1]);
      return {
        pair: [ones([1]), null],
        map: new Map([["x", ones([1])]]),
        set: new Set([ones([1])]),
        holder: new Holder(),
        text: "t",
        data: new Float32Array(4),
      };
    });
    expect(liveTensors().count).toBe(before.count + 5);
    const tensors = [made.pair[0], made.map.get("x"), ...made.set, made.holder.weight, made.holder.nested.list[0]];
    for (const tensor of tensors) {
      expect(tensor?.isFreed).toBe(false);
      tensor?.free();
    }
    expect(liveTensors()).toEqual(before);
  });

  test("what an inner scope returns belongs to the outer one", () => {
    const before = liveTensors();
    scope(() => {
      const inner = scope(() => {
        const x = ones([2]);
        return mul(x, 3);
      });
      expect(liveTensors().count).toBe(before.count + 1);
      expect(inner.toNumbers()).toEqual([3, 3]);
    });
    expect(liveTensors()).toEqual(before);
  });

  test("tensors of the outer scope survive the inner one, also when returned by it", () => {
    scope(() => {
      const x = ones([1]);
      const same = scope(() => x);
      expect(same).toBe(x);
      expect(x.isFreed).toBe(false);
    });
  });

  test("an exception frees everything and passes through", () => {
    const before = liveTensors();
    const boom = new Error("boom");
    expect(() =>
      scope(() => {
        ones([2]);
        scope(() => {
          ones([2]);
          throw boom;
        });
      }),
    ).toThrow(boom);
    expect(liveTensors()).toEqual(before);
    // The scope stack is intact: what is made now is in no scope.
    const x = ones([1]);
    expect(x.isFreed).toBe(false);
    x.free();
  });

  test("refuses a promise, and frees what was made before the first await", async () => {
    const before = liveTensors();
    let running: Promise<void> | undefined;
    expect(() =>
      scope(() => {
        running = (async () => {
          ones([2]);
          await Promise.resolve();
        })();
        return running;
      }),
    ).toThrow(InvariantError);
    await running;
    expect(liveTensors()).toEqual(before);
  });

  test("keep takes a tensor out of all scopes", () => {
    const before = liveTensors();
    let kept: Tensor | undefined;
    scope(() => {
      scope(() => {
        kept = keep(ones([3]));
      });
    });
    expect(kept!.toNumbers()).toEqual([1, 1, 1]);
    kept!.free();
    expect(liveTensors()).toEqual(before);
  });

  test("an early free inside a scope is fine", () => {
    const before = liveTensors();
    scope(() => {
      const x = ones([2]);
      x.free();
      using y = ones([2]);
      expect(y.isFreed).toBe(false);
    });
    expect(liveTensors()).toEqual(before);
  });

  test("lists of results are tracked too", () => {
    const before = liveTensors();
    const second = scope(() => split(ones([4]), [1, 3])[1]!);
    expect(second.shape).toEqual([3]);
    second.free();
    expect(liveTensors()).toEqual(before);
  });

  test("more tensors than the exchange buffer holds", () => {
    const before = liveTensors();
    scope(() => {
      const x = ones([1]);
      for (let i = 0; i < 70_000; i++) scope(() => x);
      for (let i = 0; i < 70_000; i++) add(x, 1);
      expect(liveTensors().count).toBe(before.count + 70_001);
    });
    expect(liveTensors()).toEqual(before);
  });
});
