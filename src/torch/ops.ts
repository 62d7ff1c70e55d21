/**
 * Operators by their PyTorch names: thin functions over dispatch.ts. Shapes, broadcasting and dtype promotion are
 * PyTorch's; where a function here differs, its comment says so. Names ending in `_` write into their first argument and return it.
 * A test checks every schema against the loaded libtorch. To add one, write a line.
 */
import { invariant } from "../errors.ts";
import { op, opN } from "./dispatch.ts";
import type { Device, DType } from "./dtype.ts";
import type { Generator } from "./random.ts";
import type { Tensor } from "./tensor.ts";

type Operand = Tensor | number;
type Dims = number | readonly number[];

/** Options of functions that make a tensor: float32 on the CPU by default. */
export interface MakeOptions {
  dtype?: DType;
  device?: Device;
}

const dims = (dim: Dims | undefined): number[] | null =>
  dim === undefined ? null : typeof dim === "number" ? [dim] : [...dim];

/** Picks the Tensor or the Scalar overload by the second operand. */
function binary(tensorOp: string, scalarOp: string): (x: Tensor, y: Operand) => Tensor {
  const byTensor = op(tensorOp);
  const byScalar = op(scalarOp);
  return (x, y) => (typeof y === "number" ? byScalar(x, y) : byTensor(x, y));
}

function unary(name: string): (x: Tensor) => Tensor {
  const call = op(name);
  return (x) => call(x);
}

// ---- making tensors

const zerosOp = op("aten::zeros");
const onesOp = op("aten::ones");
const fullOp = op("aten::full");
const emptyOp = op("aten::empty.memory_format");
const arangeOp = op("aten::arange.start_step");
const randnOp = op("aten::randn.generator");
const randOp = op("aten::rand.generator");

export const zeros = (shape: readonly number[], { dtype = "float32", device = "cpu" }: MakeOptions = {}): Tensor =>
  zerosOp(shape, dtype, null, device);
export const ones = (shape: readonly number[], { dtype = "float32", device = "cpu" }: MakeOptions = {}): Tensor =>
  onesOp(shape, dtype, null, device);
export const full = (
  shape: readonly number[],
  value: number,
  { dtype = "float32", device = "cpu" }: MakeOptions = {},
): Tensor => fullOp(shape, value, dtype, null, device);
/** Uninitialised memory. `pinned`: page-locked host memory for copies to CUDA. */
export const empty = (
  shape: readonly number[],
  { dtype = "float32", device = "cpu", pinned }: MakeOptions & { pinned?: boolean } = {},
): Tensor => emptyOp(shape, dtype, null, device, pinned);
/** [start, end) in steps of 1, or of `step`; int64 by default. */
export const arange = (
  start: number,
  end: number,
  { dtype = "int64", device = "cpu", step = 1 }: MakeOptions & { step?: number } = {},
): Tensor => arangeOp(start, end, step, dtype, null, device);
/** Standard normal. Without a generator libtorch's global one is used, which no run can reproduce: pass one. */
export const randn = (
  shape: readonly number[],
  { dtype = "float32", device = "cpu", generator }: MakeOptions & { generator?: Generator } = {},
): Tensor => randnOp(shape, generator ?? null, dtype, null, device);
/** Uniform in [0, 1). */
export const rand = (
  shape: readonly number[],
  { dtype = "float32", device = "cpu", generator }: MakeOptions & { generator?: Generator } = {},
): Tensor => randOp(shape, generator ?? null, dtype, null, device);
export const zerosLike: (x: Tensor, dtype?: DType) => Tensor = op("aten::zeros_like");
export const emptyLike: (x: Tensor, dtype?: DType) => Tensor = op("aten::empty_like");
export const onesLike: (x: Tensor, dtype?: DType) => Tensor = op("aten::ones_like");

// ---- shape

const contiguousOp = op("aten::contiguous");
const splitOp = opN("aten::split_with_sizes");
const asStridedOp = op("aten::as_strided");

export const reshape: (x: Tensor, shape: readonly number[]) => Tensor = op("aten::reshape");
export const transpose: (x: Tensor, dim0: number, dim1: number) => Tensor = op("aten::transpose.int");
export const permute: (x: Tensor, order: readonly number[]) => Tensor = op("aten::permute");
export const contiguous = (x: Tensor): Tensor => contiguousOp(x);
/** View of x[start:end] along `dim`; `end` beyond the size is cut. */
export const slice: (x: Tensor, dim: number, start: number, end: number, step?: number) => Tensor =
  op("aten::slice.Tensor");
export const select: (x: Tensor, dim: number, index: number) => Tensor = op("aten::select.int");
/** View of `length` entries from `start` on; out of range is an error, unlike slice. */
export const narrow: (x: Tensor, dim: number, start: number, length: number) => Tensor = op("aten::narrow");
export const indexSelect: (x: Tensor, dim: number, index: Tensor) => Tensor = op("aten::index_select");
export const gather: (x: Tensor, dim: number, index: Tensor) => Tensor = op("aten::gather");
export const cat: (tensors: readonly Tensor[], dim?: number) => Tensor = op("aten::cat");
export const stack: (tensors: readonly Tensor[], dim?: number) => Tensor = op("aten::stack");
export const split = (x: Tensor, sizes: readonly number[], dim = 0): Tensor[] => splitOp(x, sizes, dim);
export const expand: (x: Tensor, shape: readonly number[]) => Tensor = op("aten::expand");
export const unsqueeze: (x: Tensor, dim: number) => Tensor = op("aten::unsqueeze");
export const squeeze: (x: Tensor, dim: number) => Tensor = op("aten::squeeze.dim");
export const flatten: (x: Tensor, start?: number, end?: number) => Tensor = op("aten::flatten.using_ints");
/** Each entry `n` times in a row along `dim`. */
export const repeatInterleave: (x: Tensor, n: number, dim: number) => Tensor = op("aten::repeat_interleave.self_int");
export const repeat: (x: Tensor, times: readonly number[]) => Tensor = op("aten::repeat");
/** The same bytes read as another dtype. */
export const viewDtype: (x: Tensor, dtype: DType) => Tensor = op("aten::view.dtype");
export const flip: (x: Tensor, along: readonly number[]) => Tensor = op("aten::flip");
/** A view with these sizes and strides, in elements, from `offset` of the storage on. */
export const asStrided = (x: Tensor, sizes: readonly number[], strides: readonly number[], offset = 0): Tensor =>
  asStridedOp(x, sizes, strides, offset);

// ---- dtype, device, copies

const toOp = op("aten::_to_copy");
const cloneOp = op("aten::clone");
const detachOp = op("aten::detach");
const aliasOp = op("aten::alias");

/** Another dtype or device; a new handle of the same memory when nothing changes. nonBlocking: from pinned memory, without waiting. */
export const to = (x: Tensor, options: MakeOptions & { nonBlocking?: boolean }): Tensor => {
  const { dtype = x.dtype, device = x.device, nonBlocking = false } = options;
  // "cuda" means any device index: libtorch compares devices only by what is asked for.
  const same = dtype === x.dtype && (device === x.device || (device === "cuda" && x.device.startsWith("cuda")));
  return same ? aliasOp(x) : toOp(x, dtype, null, device, null, nonBlocking);
};
export const cast = (x: Tensor, dtype: DType): Tensor => to(x, { dtype });
export const clone = (x: Tensor): Tensor => cloneOp(x);
export const detach = (x: Tensor): Tensor => detachOp(x);

// ---- arithmetic

const addTensor = op("aten::add.Tensor");
const addScalar = op("aten::add.Scalar");
const subTensor = op("aten::sub.Tensor");
const subScalar = op("aten::sub.Scalar");
const clampOp = op("aten::clamp");

/** x + alpha * y */
export const add = (x: Tensor, y: Operand, alpha = 1): Tensor =>
  typeof y === "number" ? addScalar(x, y, alpha) : addTensor(x, y, alpha);
/** x - alpha * y */
export const sub = (x: Tensor, y: Operand, alpha = 1): Tensor =>
  typeof y === "number" ? subScalar(x, y, alpha) : subTensor(x, y, alpha);
export const mul = binary("aten::mul.Tensor", "aten::mul.Scalar");
export const div = binary("aten::div.Tensor", "aten::div.Scalar");
export const remainder = binary("aten::remainder.Tensor", "aten::remainder.Scalar");
export const pow = binary("aten::pow.Tensor_Tensor", "aten::pow.Tensor_Scalar");
export const neg = unary("aten::neg");
export const exp = unary("aten::exp");
export const log = unary("aten::log");
export const sqrt = unary("aten::sqrt");
export const rsqrt = unary("aten::rsqrt");
export const square = unary("aten::square");
export const abs = unary("aten::abs");
export const round = unary("aten::round");
export const floor = unary("aten::floor");
export const cos = unary("aten::cos");
export const sin = unary("aten::sin");
export const tanh = unary("aten::tanh");
export const sigmoid = unary("aten::sigmoid");
export const silu = unary("aten::silu");
export const reciprocal = unary("aten::reciprocal");
export const clamp = (x: Tensor, low?: number | null, high?: number | null): Tensor =>
  clampOp(x, low ?? null, high ?? null);
export const minimum: (x: Tensor, y: Tensor) => Tensor = op("aten::minimum");
export const maximum: (x: Tensor, y: Tensor) => Tensor = op("aten::maximum");
const geluOp = op("aten::gelu");
/** "none" is the exact one with erf. */
export const gelu = (x: Tensor, approximate: "none" | "tanh" = "none"): Tensor => geluOp(x, approximate);

// ---- reductions

const sumOp = op("aten::sum.dim_IntList");
const meanOp = op("aten::mean.dim");
const amaxOp = op("aten::amax");
const aminOp = op("aten::amin");
const argmaxOp = op("aten::argmax");
const topkOp = opN("aten::topk");
const sortOp = opN("aten::sort.stable");
const cumsumOp = op("aten::cumsum");
const searchsortedOp = op("aten::searchsorted.Tensor");
const logsumexpOp = op("aten::logsumexp");
const softmaxOp = op("aten::softmax.int");
const logSoftmaxOp = op("aten::log_softmax.int");
const normOp = op("aten::linalg_vector_norm");
const allOp = op("aten::all");
const anyOp = op("aten::any");
const anyDimOp = op("aten::any.dim");

/** Over `over`, or over everything. Integers and booleans add up as int64; `dtype` is the accumulator and result type. */
export const sum = (x: Tensor, over?: Dims, keepdim = false, dtype?: DType): Tensor =>
  sumOp(x, dims(over), keepdim, dtype ?? null);
export const mean = (x: Tensor, over?: Dims, keepdim = false, dtype?: DType): Tensor =>
  meanOp(x, dims(over), keepdim, dtype ?? null);
export const amax = (x: Tensor, over?: Dims, keepdim = false): Tensor => amaxOp(x, dims(over) ?? [], keepdim);
export const amin = (x: Tensor, over?: Dims, keepdim = false): Tensor => aminOp(x, dims(over) ?? [], keepdim);
/** int64. Over everything where no dimension is given. */
export const argmax = (x: Tensor, dim?: number, keepdim = false): Tensor => argmaxOp(x, dim ?? null, keepdim);
/** [values, int64 indices] of the k largest along `dim`, in falling order. */
export const topk = (x: Tensor, k: number, dim = -1): [Tensor, Tensor] => topkOp(x, k, dim) as [Tensor, Tensor];
/** [values, int64 indices]; stable: equal values keep their order. */
export const sort = (x: Tensor, dim = -1, descending = false): [Tensor, Tensor] =>
  sortOp(x, true, dim, descending) as [Tensor, Tensor];
export const cumsum = (x: Tensor, dim: number, dtype?: DType): Tensor => cumsumOp(x, dim, dtype ?? null);
/** For each value the first place in the rising `sorted` whose entry is >= value (> value with `right`); int64. */
export const searchsorted = (sorted: Tensor, values: Tensor, right = false): Tensor =>
  searchsortedOp(sorted, values, false, right);
export const logsumexp = (x: Tensor, over: Dims, keepdim = false): Tensor => logsumexpOp(x, dims(over), keepdim);
/** `dtype`: computed and returned in it. */
export const softmax = (x: Tensor, dim: number, dtype?: DType): Tensor => softmaxOp(x, dim, dtype ?? null);
export const logSoftmax = (x: Tensor, dim: number, dtype?: DType): Tensor => logSoftmaxOp(x, dim, dtype ?? null);
/** Euclidean norm over `over`, or over everything; `dtype` is the accumulator and result type. */
export const norm = (x: Tensor, over?: Dims, keepdim = false, dtype?: DType): Tensor =>
  normOp(x, 2, dims(over), keepdim, dtype ?? null);
export const all = (x: Tensor): Tensor => allOp(x);
export const any = (x: Tensor, dim?: number): Tensor => (dim === undefined ? anyOp(x) : anyDimOp(x, dim));

// ---- comparison and choice

export const eq = binary("aten::eq.Tensor", "aten::eq.Scalar");
export const ne = binary("aten::ne.Tensor", "aten::ne.Scalar");
export const lt = binary("aten::lt.Tensor", "aten::lt.Scalar");
export const le = binary("aten::le.Tensor", "aten::le.Scalar");
export const gt = binary("aten::gt.Tensor", "aten::gt.Scalar");
export const ge = binary("aten::ge.Tensor", "aten::ge.Scalar");
export const logicalAnd: (x: Tensor, y: Tensor) => Tensor = op("aten::logical_and");
export const logicalOr: (x: Tensor, y: Tensor) => Tensor = op("aten::logical_or");
export const logicalNot = unary("aten::logical_not");
export const isfinite = unary("aten::isfinite");
const whereOp = op("aten::where.self");
const whereScalarOther = op("aten::where.ScalarOther");
const whereScalarSelf = op("aten::where.ScalarSelf");
const nonzeroOp = op("aten::nonzero");
/** a where c holds, else b; one of them may be a number. */
export const where = (c: Tensor, a: Operand, b: Operand): Tensor => {
  if (typeof a !== "number") return typeof b === "number" ? whereScalarOther(c, a, b) : whereOp(c, a, b);
  invariant(typeof b !== "number", "where: one branch must be a tensor");
  return whereScalarSelf(c, a, b);
};
export const maskedFill: (x: Tensor, mask: Tensor, value: number) => Tensor = op("aten::masked_fill.Scalar");
/** Entries where the mask holds, flat. Waits for the device: the result's size depends on values. */
export const maskedSelect: (x: Tensor, mask: Tensor) => Tensor = op("aten::masked_select");
/** [n, ndim] int64 places of the non-zero entries. Waits for the device. */
export const nonzero = (x: Tensor): Tensor => nonzeroOp(x);

// ---- linear algebra, layers

const rmsNormOp = op("aten::rms_norm");
const sdpaOp = op("aten::scaled_dot_product_attention");
const bicubicOp = op("aten::_upsample_bicubic2d_aa");

export const matmul: (x: Tensor, y: Tensor) => Tensor = op("aten::matmul");
export const mm: (x: Tensor, y: Tensor) => Tensor = op("aten::mm");
export const bmm: (x: Tensor, y: Tensor) => Tensor = op("aten::bmm");
/** x + a @ b */
export const addmm: (x: Tensor, a: Tensor, b: Tensor) => Tensor = op("aten::addmm");
/** x [..., in] with weight [out, in] and bias [out]: [..., out]. */
export const linear: (x: Tensor, weight: Tensor, bias?: Tensor | null) => Tensor = op("aten::linear");
export const outer: (x: Tensor, y: Tensor) => Tensor = op("aten::outer");
export const tril: (x: Tensor, diagonal?: number) => Tensor = op("aten::tril");
export const triu: (x: Tensor, diagonal?: number) => Tensor = op("aten::triu");
export const layerNorm: (
  x: Tensor,
  shape: readonly number[],
  weight: Tensor | null,
  bias: Tensor | null,
  eps: number,
) => Tensor = op("aten::layer_norm");
/** x / sqrt(mean(x^2) + eps) * weight over the last dimension. */
export const rmsNorm = (x: Tensor, weight: Tensor, eps: number): Tensor => rmsNormOp(x, weight.shape, weight, eps);
/** Rows of weight [V, D] at ids [...]: [..., D]. */
export const embedding: (weight: Tensor, ids: Tensor) => Tensor = op("aten::embedding");
/** q [B, H, Tq, D], k and v [B, Hk, Tk, D]. A boolean mask is true where attention is allowed. */
export const scaledDotProductAttention = (
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: { mask?: Tensor | null; causal?: boolean; scale?: number; enableGqa?: boolean } = {},
): Tensor =>
  sdpaOp(q, k, v, options.mask ?? null, 0, options.causal ?? false, options.scale ?? null, options.enableGqa ?? false);
/** Antialiased bicubic resize of x [B, C, H, W], half-pixel centres, as torchvision does it. */
export const upsampleBicubic2dAa = (x: Tensor, size: readonly [height: number, width: number]): Tensor =>
  bicubicOp(x, size, false, null, null);

// ---- in place

const addTensor_ = op("aten::add_.Tensor");
const addScalar_ = op("aten::add_.Scalar");
const zeroOp_ = op("aten::zero_");
const clampOp_ = op("aten::clamp_");

/** x += alpha * y */
export const add_ = (x: Tensor, y: Operand, alpha = 1): Tensor =>
  typeof y === "number" ? addScalar_(x, y, alpha) : addTensor_(x, y, alpha);
export const sub_ = binary("aten::sub_.Tensor", "aten::sub_.Scalar");
export const mul_ = binary("aten::mul_.Tensor", "aten::mul_.Scalar");
export const div_ = binary("aten::div_.Tensor", "aten::div_.Scalar");
/** Copies y into x, converting dtype and device; broadcasts. nonBlocking needs pinned host memory. */
export const copy_: (x: Tensor, y: Tensor, nonBlocking?: boolean) => Tensor = op("aten::copy_");
export const fill_: (x: Tensor, value: number) => Tensor = op("aten::fill_.Scalar");
export const zero_ = (x: Tensor): Tensor => zeroOp_(x);
export const indexCopy_: (x: Tensor, dim: number, index: Tensor, source: Tensor) => Tensor = op("aten::index_copy_");
/** x[index[i]] += alpha * source[i] along `dim`; repeated indices add up. */
export const indexAdd_: (x: Tensor, dim: number, index: Tensor, source: Tensor, alpha?: number) => Tensor =
  op("aten::index_add_");
export const scatter_: (x: Tensor, dim: number, index: Tensor, source: Tensor) => Tensor = op("aten::scatter_.src");
/** x += value * a * b */
export const addcmul_: (x: Tensor, a: Tensor, b: Tensor, value?: number) => Tensor = op("aten::addcmul_");
/** x += value * a / b */
export const addcdiv_: (x: Tensor, a: Tensor, b: Tensor, value?: number) => Tensor = op("aten::addcdiv_");
/** x += weight * (y - x) */
export const lerp_: (x: Tensor, y: Tensor, weight: number) => Tensor = op("aten::lerp_.Scalar");
export const sqrt_ = unary("aten::sqrt_");
export const exp_ = unary("aten::exp_");
export const maskedFill_: (x: Tensor, mask: Tensor, value: number) => Tensor = op("aten::masked_fill_.Scalar");
export const clamp_ = (x: Tensor, low?: number | null, high?: number | null): Tensor =>
  clampOp_(x, low ?? null, high ?? null);
