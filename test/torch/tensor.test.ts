import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { NativeError, ShapeError, UseAfterFreeError } from "../../src/errors.ts";
import { cudaAvailable } from "../../src/torch/cuda.ts";
import { deviceCode, deviceName, dtypeCode, dtypeName, itemSize } from "../../src/torch/dtype.ts";
import { add, cast, copy_, fill_, randn, slice, transpose, zeros } from "../../src/torch/ops.ts";
import { Generator } from "../../src/torch/random.ts";
import { liveTensors, scope } from "../../src/torch/scope.ts";
import { fromArray, MappedFile } from "../../src/torch/tensor.ts";

const folder = mkdtempSync(join(tmpdir(), "grove-tensor-"));
afterAll(() => rmSync(folder, { recursive: true }));

describe("copies in and out", () => {
  test.each([
    ["float32", Float32Array.of(1.5, -2, 3e38)],
    ["float64", Float64Array.of(1.1, -2, 1e300)],
    ["int64", BigInt64Array.of(1n, -(2n ** 62n), 3n)],
    ["int32", Int32Array.of(1, -2147483648, 3)],
    ["int16", Int16Array.of(1, -32768, 3)],
    ["uint8", Uint8Array.of(1, 255, 3)],
  ] as const)("%s round-trips exactly", (dtype, data) => {
    scope(() => {
      const tensor = fromArray(data, [3, 1]);
      expect([tensor.dtype, tensor.shape, tensor.device]).toEqual([dtype, [3, 1], "cpu"]);
      expect(tensor.toArray()).toEqual(data);
      expect([tensor.numel, tensor.ndim, tensor.nbytes]).toEqual([3, 2, data.byteLength]);
    });
  });

  test("plain numbers become float32, or what dtype says; int64 is exact up to 2^53", () => {
    scope(() => {
      expect(fromArray([1, 2], [2]).dtype).toBe("float32");
      expect(fromArray([2 ** 53 - 1], [1], { dtype: "int64" }).toArray()).toEqual(BigInt64Array.of(2n ** 53n - 1n));
      expect(fromArray(Uint32Array.of(4294967295), [1], { dtype: "int64" }).toNumbers()).toEqual([4294967295]);
      expect(fromArray([0, 2], [2], { dtype: "bool" }).toArray()).toEqual(Uint8Array.of(0, 1));
    });
  });

  test("the copy is the tensor's own", () => {
    scope(() => {
      const data = Float32Array.of(1, 2);
      const tensor = fromArray(data, [2]);
      data[0] = 9;
      expect(tensor.toNumbers()).toEqual([1, 2]);
    });
  });

  test("views are read row-major", () => {
    scope(() => {
      const view = transpose(fromArray([1, 2, 3, 4, 5, 6], [2, 3]), 0, 1);
      expect(view.toNumbers()).toEqual([1, 4, 2, 5, 3, 6]);
      expect(slice(view, 0, 1, 2).toNumbers()).toEqual([2, 5]);
    });
  });

  test("bfloat16 rounds to nearest even, float16 keeps 11 bits; both come back as float32", () => {
    scope(() => {
      // 1 + 2^-8 lies halfway between 1 and 1 + 2^-7: even wins. 1 + 3 * 2^-8 goes up.
      const values = fromArray([1 + 2 ** -8, 1 + 3 * 2 ** -8, 3.140625], [3], { dtype: "bfloat16" });
      expect(values.dtype).toBe("bfloat16");
      expect(values.toArray()).toEqual(Float32Array.of(1, 1 + 2 ** -6, 3.140625));
      expect(cast(fromArray([1 + 2 ** -10], [1]), "float16").toNumbers()).toEqual([1 + 2 ** -10]);
      using generator = new Generator(1);
      const random = randn([4096], { generator });
      const twice = cast(cast(cast(random, "bfloat16"), "float32"), "bfloat16");
      expect(twice.toArray()).toEqual(cast(random, "bfloat16").toArray());
    });
  });

  test("scalars and empty tensors", () => {
    scope(() => {
      expect(fromArray([2.5], []).item()).toBe(2.5);
      expect(fromArray([], [0, 3]).toArray()).toEqual(new Float32Array(0));
      expect(() => fromArray([1, 2], [2]).item()).toThrow(NativeError);
    });
  });

  test("a shape that does not hold the data is refused", () => {
    expect(() => fromArray([1, 2, 3], [2, 2])).toThrow(ShapeError);
    expect(() => fromArray([1, 2, 3], [2, 2])).toThrow("fromArray: expected a shape of 3 elements, got [2, 2]");
    expect(() => fromArray([1], [-1, -1])).toThrow();
  });

  test("size() counts from both ends and refuses other dimensions", () => {
    scope(() => {
      const x = zeros([2, 3]);
      expect([x.size(0), x.size(-1)]).toEqual([2, 3]);
      expect(() => x.size(2)).toThrow(ShapeError);
    });
  });
});

describe("use after free", () => {
  test("is an error in every method and operator, and frees nothing else", () => {
    const x = zeros([2]);
    x.free();
    x.free(); // twice is fine
    expect(x.isFreed).toBe(true);
    const other = zeros([2]); // takes the same slot
    for (const use of [() => x.shape, () => x.toArray(), () => x.item(), () => x.requiresGrad, () => add(other, x)]) {
      expect(use).toThrow(UseAfterFreeError);
    }
    expect(() => x.setGrad(null)).toThrow(UseAfterFreeError);
    expect(() => add(x, 1)).toThrow(`tensor #${x.handle} was freed already`);
    expect(String(x)).toContain("freed");
    expect(other.toNumbers()).toEqual([0, 0]);
    other.free();
  });

  test("metadata read before the free stays readable", () => {
    const x = zeros([2, 3]);
    expect(x.shape).toEqual([2, 3]);
    x.free();
    expect(x.shape).toEqual([2, 3]);
    expect(() => x.toArray()).toThrow(UseAfterFreeError);
  });

  test("using frees at the end of the block", () => {
    const before = liveTensors();
    {
      using x = zeros([1024]);
      expect(liveTensors()).toEqual({ count: before.count + 1, bytes: before.bytes + 4096 });
      expect(x.isFreed).toBe(false);
    }
    expect(liveTensors()).toEqual(before);
  });

  test("a view keeps the memory, and shared memory counts once", () => {
    const before = liveTensors();
    const whole = zeros([1024]);
    const part = slice(whole, 0, 0, 1);
    expect(liveTensors()).toEqual({ count: before.count + 2, bytes: before.bytes + 4096 });
    whole.free();
    expect(liveTensors()).toEqual({ count: before.count + 1, bytes: before.bytes + 4096 });
    expect(part.toNumbers()).toEqual([0]);
    part.free();
    expect(liveTensors()).toEqual(before);
  });

  test("slots are reused without mixing up handles, many times over", () => {
    const stale = zeros([1]);
    stale.free();
    for (let i = 0; i < 5000; i++) {
      using fresh = zeros([1]);
      expect(fresh.handle).not.toBe(stale.handle);
    }
    expect(() => stale.toArray()).toThrow(UseAfterFreeError);
  });
});

describe("mapped files", () => {
  const path = join(folder, "weights.bin");
  const bytes = new Uint8Array(64);
  new Float32Array(bytes.buffer, 8, 4).set([1, 2, 3, 4]);
  new BigInt64Array(bytes.buffer, 24, 2).set([5n, -6n]);
  writeFileSync(path, bytes);

  test("tensors read the bytes at their offset, and outlive close()", () => {
    scope(() => {
      const file = MappedFile.open(path);
      expect(file.byteLength).toBe(64);
      const floats = file.tensor(8, [2, 2], "float32");
      const longs = file.tensor(24, [2], "int64");
      file.close();
      expect(floats.toNumbers()).toEqual([1, 2, 3, 4]);
      expect(longs.toArray()).toEqual(BigInt64Array.of(5n, -6n));
      expect(() => file.tensor(0, [1], "uint8")).toThrow(UseAfterFreeError);
    });
  });

  test("badly aligned bytes are copied", () => {
    scope(() => {
      const shifted = join(folder, "shifted.bin");
      writeFileSync(shifted, Buffer.concat([Buffer.of(7), Buffer.from(Float32Array.of(1.5, 2.5).buffer)]));
      using file = MappedFile.open(shifted);
      expect(file.tensor(1, [2], "float32").toNumbers()).toEqual([1.5, 2.5]);
    });
  });

  test("writing changes our copy, not the file", () => {
    scope(() => {
      using file = MappedFile.open(path);
      const floats = file.tensor(8, [4], "float32");
      fill_(floats, 9);
      copy_(slice(floats, 0, 0, 1), fromArray([8], [1]));
      expect(floats.toNumbers()).toEqual([8, 9, 9, 9]);
      expect(new Uint8Array(readFileSync(path))).toEqual(bytes);
    });
  });

  test("what lies outside the file, a missing file and a folder are errors", () => {
    scope(() => {
      using file = MappedFile.open(path);
      for (const [offset, size] of [
        [60, 4],
        [-4, 1],
        [1e15, 1],
        [0, 2 ** 60],
      ] as const) {
        expect(() => file.tensor(offset, [size], "float64")).toThrow(NativeError);
      }
      expect(() => file.tensor(60, [4], "float32")).toThrow("lie outside the file of 64 bytes");
    });
    expect(() => MappedFile.open(join(folder, "none.bin"))).toThrow("No such file");
    expect(() => MappedFile.open(folder)).toThrow("not a regular file");
    const empty = join(folder, "empty.bin");
    writeFileSync(empty, "");
    using file = MappedFile.open(empty);
    scope(() => expect(file.tensor(0, [0], "float32").shape).toEqual([0]));
  });
});

test("dtype and device tables are consistent, and refuse unknown names", () => {
  for (const dtype of [
    "float32",
    "float64",
    "bfloat16",
    "float16",
    "int64",
    "int32",
    "int16",
    "uint8",
    "bool",
  ] as const) {
    expect(dtypeName(dtypeCode(dtype))).toBe(dtype);
    scope(() => expect(zeros([3], { dtype }).nbytes).toBe(3 * itemSize(dtype)));
  }
  for (const device of cudaAvailable() ? (["cpu", "cuda", "cuda:0", "cuda:7"] as const) : (["cpu"] as const))
    expect(deviceName(deviceCode(device))).toBe(device);
  expect(() => dtypeCode("float8" as never)).toThrow("expected one of");
  expect(() => deviceCode("gpu" as never)).toThrow("expected");
});
