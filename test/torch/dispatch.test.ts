/** The generic call: arguments of every kind, and every way to get them wrong. None of it may end the process. */
import { describe, expect, test } from "vitest";
import { DTypeError, NativeError, ShapeError, UseAfterFreeError } from "../../src/errors.ts";
import { addon, io } from "../../src/torch/addon.ts";
import { type OpArg, op, opN, schemaOf } from "../../src/torch/dispatch.ts";
import { cast, ones, zeros } from "../../src/torch/ops.ts";
import { Generator } from "../../src/torch/random.ts";
import { liveTensors, scope } from "../../src/torch/scope.ts";
import { fromArray, type Tensor } from "../../src/torch/tensor.ts";

const call = (name: string, ...args: OpArg[]): Tensor => op(name)(...args);

describe("arguments", () => {
  test("defaults, None and values", () => {
    scope(() => {
      const x = fromArray([1, 2], [2]);
      expect(call("aten::add.Tensor", x, x).toNumbers()).toEqual([2, 4]);
      expect(call("aten::add.Tensor", x, x, undefined).toNumbers()).toEqual([2, 4]);
      expect(call("aten::add.Tensor", x, x, 3).toNumbers()).toEqual([4, 8]);
      expect(call("aten::clamp", x, null, 1).toNumbers()).toEqual([1, 1]);
    });
  });

  test("a Scalar keeps the kind of its number", () => {
    scope(() => {
      const x = fromArray([1], [1], { dtype: "int64" });
      expect(call("aten::add.Scalar", x, 2).dtype).toBe("int64");
      expect(call("aten::add.Scalar", x, 2n).dtype).toBe("int64");
      expect(call("aten::add.Scalar", x, 2.5).dtype).toBe("float32");
      expect(call("aten::add.Scalar", x, Number.POSITIVE_INFINITY).item()).toBe(Number.POSITIVE_INFINITY);
      expect(call("aten::eq.Scalar", fromArray([1], [1], { dtype: "bool" }), true).item()).toBe(1);
    });
  });

  test("lists: ints from arrays or typed arrays, one number for a fixed length, tensors, optional tensors, booleans", () => {
    scope(() => {
      const x = fromArray([1, 2, 3, 4], [2, 2]);
      expect(call("aten::reshape", x, Int32Array.of(4)).shape).toEqual([4]);
      expect(call("aten::reshape", x, [1, 4]).shape).toEqual([1, 4]);
      const image = ones([1, 1, 4, 4]);
      expect(call("aten::avg_pool2d", image, 2).shape).toEqual([1, 1, 2, 2]);
      expect(call("aten::cat", [x, x], 1).shape).toEqual([2, 4]);
      const rows = fromArray([1], [1], { dtype: "int64" });
      expect(call("aten::index.Tensor", x, [null, rows]).toNumbers()).toEqual([2, 4]);
      const [dx, dw, db] = opN("aten::convolution_backward")(
        ones([1, 1, 1, 1]),
        ones([1, 1, 1, 1]),
        ones([1, 1, 1, 1]),
        [1],
        [1, 1],
        Int32Array.of(0, 0),
        [1, 1],
        false,
        [0, 0],
        1,
        [true, false, true],
      );
      expect([dx?.shape, dw, db?.shape]).toEqual([[1, 1, 1, 1], null, [1]]);
    });
  });

  test("dtypes, devices, strings and generators", () => {
    scope(() => {
      const x = call("aten::zeros", [2], "bfloat16", null, "cpu");
      expect([x.dtype, x.device]).toEqual(["bfloat16", "cpu"]);
      expect(call("aten::gelu", ones([1]), "tanh").item()).toBeCloseTo(0.841192, 5);
      using generator = new Generator(3);
      expect(call("aten::randn.generator", [2], generator).shape).toEqual([2]);
    });
  });

  test("mixed results: tensors, numbers, lists", () => {
    scope(() => {
      const parts = opN("aten::split.Tensor")(ones([5]), 2);
      expect(parts.map((part) => part.shape[0])).toEqual([2, 2, 1]);
      const [size] = opN("aten::size.int")(ones([5]), 0) as unknown as [number];
      expect(size).toBe(5);
      const [same] = opN("aten::is_same_size")(ones([5]), ones([5])) as unknown as [number];
      expect(same).toBe(1);
    });
  });

  test("an in-place operator returns its argument and makes no handle", () => {
    scope(() => {
      const x = ones([2]);
      const before = liveTensors();
      expect(call("aten::add_.Tensor", x, x)).toBe(x);
      expect(opN("aten::add_.Tensor")(x, x)[0]).toBe(x);
      expect(liveTensors()).toEqual(before);
      expect(x.toNumbers()).toEqual([4, 4]);
    });
  });

  test("schemaOf prints the dispatcher's schema", () => {
    expect(schemaOf("aten::mm")).toBe("aten::mm(Tensor self, Tensor mat2) -> Tensor");
  });
});

describe("errors", () => {
  test("unknown operator or overload", () => {
    expect(() => call("aten::no_such_op")).toThrow(NativeError);
    expect(() => call("aten::add.NoSuchOverload")).toThrow("aten::add");
    expect(() => call("nonsense")).toThrow(NativeError);
    expect(() => call("")).toThrow(NativeError);
  });

  test("shapes that do not fit name the operator and both shapes", () => {
    scope(() => {
      const run = (): Tensor => call("aten::mm", ones([2, 3]), ones([4, 5]));
      expect(run).toThrow(ShapeError);
      expect(run).toThrow(/^aten::mm: .*\[2, 3\] float32, \[4, 5\] float32/);
      expect(() => call("aten::add.Tensor", ones([2, 3]), ones([4]))).toThrow(ShapeError);
      expect(() => call("aten::reshape", ones([2, 3]), [4])).toThrow(ShapeError);
      expect(() => call("aten::cat", [ones([2, 3]), ones([2, 4])], 0)).toThrow(ShapeError);
      expect(() => call("aten::select.int", ones([2]), 0, 5)).toThrow(ShapeError);
      expect(() => call("aten::select.int", ones([2]), 3, 0)).toThrow(ShapeError);
      expect(() => call("aten::stack", [ones([2]), ones([3])], 0)).toThrow(ShapeError);
      expect(() => call("aten::expand", ones([2]), [3])).toThrow(ShapeError);
    });
  });

  test("dtypes that do not fit name both dtypes", () => {
    scope(() => {
      const run = (): Tensor => call("aten::mm", ones([2, 2]), cast(ones([2, 2]), "float64"));
      expect(run).toThrow(DTypeError);
      expect(run).toThrow(/\[2, 2\] float32, \[2, 2\] float64/);
      expect(() => call("aten::embedding", ones([2, 2]), ones([1]))).toThrow(DTypeError);
      expect(() => call("aten::zeros", [1], "float8")).toThrow(DTypeError);
      expect(() => call("aten::add_.Tensor", zeros([1], { dtype: "int64" }), ones([1]))).toThrow(DTypeError);
    });
  });

  test("the cause stays attached", () => {
    scope(() => {
      try {
        call("aten::mm", ones([2, 3]), ones([4, 5]));
        expect.unreachable();
      } catch (error) {
        expect((error as ShapeError).details).toMatchObject({ op: "aten::mm" });
        expect(String((error as Error).cause)).toContain("cannot be multiplied");
      }
    });
  });

  test("wrong argument counts show the schema", () => {
    scope(() => {
      const x = ones([1, 1]);
      expect(() => call("aten::mm", x)).toThrow('argument "mat2" is required; schema: aten::mm(');
      expect(() => call("aten::mm", x, x, x)).toThrow("expected at most 2 arguments, got 3; schema: aten::mm(");
      expect(() => call("aten::mm")).toThrow(NativeError);
    });
  });

  test.each<[string, string, (x: Tensor) => OpArg[], string]>([
    ["a number for a Tensor", "aten::mm", (x) => [x, 3], 'argument "mat2" must be a Tensor, got number 3'],
    [
      "a Tensor for a Scalar",
      "aten::add.Scalar",
      (x) => [x, x],
      'argument "other" must be a number or boolean, got a Tensor',
    ],
    ["a fraction for an int", "aten::select.int", (x) => [x, 0, 0.5], 'argument "index" must be an integer'],
    ["NaN for an int", "aten::select.int", (x) => [x, 0, Number.NaN], "must be an integer"],
    ["a string for a list", "aten::reshape", (x) => [x, "2"], "must be an array of integers"],
    ["fractions in an int list", "aten::reshape", (x) => [x, [0.5]], "must be an array of integers"],
    ["numbers in a tensor list", "aten::cat", () => [[1, 2]], "must be an array of Tensors"],
    ["null in a tensor list", "aten::cat", (x) => [[x, null]], "must be an array of Tensors"],
    ["null for a required argument", "aten::mm", (x) => [x, null], 'argument "mat2" is required'],
    ["a number for a bool", "aten::sum.dim_IntList", (x) => [x, [0], 1], 'argument "keepdim" must be a boolean'],
    ["a number for a dtype", "aten::zeros", () => [[1], 6], 'argument "dtype" must be a dtype'],
    ["a wrong device", "aten::zeros", () => [[1], null, null, "tpu"], "expected"],
    ["a number for a generator", "aten::randn.generator", () => [[1], 5], 'argument "generator" must be a Generator'],
  ])("%s", (_title, name, makeArgs, message) => {
    scope(() => {
      expect(() => call(name, ...makeArgs(ones([2, 2])))).toThrow(message);
      expect(() => call(name, ...makeArgs(ones([2, 2])))).toThrow(NativeError);
    });
  });

  test("a freed tensor, directly and in a list", () => {
    scope(() => {
      const x = ones([1]);
      const y = ones([1]);
      y.free();
      expect(() => call("aten::add.Tensor", x, y)).toThrow(UseAfterFreeError);
      expect(() => call("aten::cat", [x, y])).toThrow(UseAfterFreeError);
    });
  });

  test("a freed generator", () => {
    const generator = new Generator(1);
    generator.free();
    expect(() => call("aten::randn.generator", [1], generator)).toThrow(UseAfterFreeError);
  });

  test("a list longer than the exchange buffer", () => {
    scope(() => {
      expect(() => call("aten::reshape", ones([1]), new Array(70_000).fill(1))).toThrow(NativeError);
    });
  });

  test("an impossible allocation", () => {
    expect(() => zeros([2 ** 45], { dtype: "float64" })).toThrow(NativeError);
    expect(() => zeros([2 ** 40, 2 ** 40])).toThrow(NativeError);
  });

  test("after an error the next call works", () => {
    scope(() => {
      expect(() => call("aten::mm", ones([2, 3]), ones([4, 5]))).toThrow();
      expect(call("aten::mm", ones([1, 2]), ones([2, 1])).item()).toBe(2);
    });
  });

  test("the addon itself withstands garbage in the exchange buffer", () => {
    const mm = addon.resolveOp("aten::mm").index;
    for (const garbage of [
      [-1],
      [1e9],
      [Number.NaN],
      [mm, -1],
      [mm, 1e9],
      [mm, 2, 7, 7],
      [mm, 2, 2, 5, 2, Number.NaN],
    ]) {
      io.fill(0, 0, 16);
      io.set(garbage);
      expect(() => addon.callOp()).toThrow();
    }
    expect(() => addon.tensorMeta(Number.NaN)).toThrow();
    expect(() => addon.tensorMeta("x" as never)).toThrow();
    expect(() => (addon.tensorMeta as () => void)()).toThrow();
    expect(() => addon.tensorFree(-1)).toThrow();
    expect(() => addon.tensorRead(4194304, {} as never, 6)).toThrow();
    expect(addon.tensorIsLive(-5)).toBe(false);
  });
});
