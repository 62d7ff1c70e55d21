// grove::adamw_ as a composition of ATen operators, parameter by parameter: for any device, and the oracle of the other two.
#include "adamw.h"

namespace grove::adamw {

namespace {

using at::Tensor;

Tensor floatsOf(const Tensor& bits) { return bits.to(at::kInt).view(at::kFloat); }
Tensor bitsOf(const Tensor& floats) { return floats.contiguous().view(at::kInt).to(at::kLong).bitwise_and(0xffffffff); }

// The upper or the lower half of a 64-bit product of 32-bit words kept in int64, which wraps around as unsigned numbers do.
Tensor low32(const Tensor& x) { return x.bitwise_and(0xffffffff); }
Tensor high32(const Tensor& x) { return low32(x.bitwise_right_shift(32)); }

// Random words of elements [index, index + count) of a parameter: int64 [count], 32 bits used. index is a multiple of 4.
Tensor randomWords(const Update& u, size_t segment, int64_t index, int64_t count) {
  const Tensor quad = at::arange(index / 4, (index + count + 3) / 4, u.grad.options().dtype(at::kLong));
  Tensor a = low32(quad), b = high32(quad), c = at::full_like(quad, static_cast<int64_t>(u.step.update)), d = at::zeros_like(quad);
  int64_t key0 = u.keys[2 * segment], key1 = u.keys[2 * segment + 1];
  for (int round = 0; round < 10; round++) {
    const Tensor left = a.mul(int64_t{0xd2511f53}), right = c.mul(int64_t{0xcd9e8d57});
    a = high32(right).bitwise_xor_(b).bitwise_xor_(key0);
    c = high32(left).bitwise_xor_(d).bitwise_xor_(key1);
    b = low32(right);
    d = low32(left);
    key0 = (key0 + 0x9e3779b9) & 0xffffffff;
    key1 = (key1 + 0xbb67ae85) & 0xffffffff;
  }
  return at::stack({a, b, c, d}, 1).flatten().slice(0, 0, count);
}

// Scales [blocks] for each of `count` elements.
Tensor spread(const Tensor& scales, int64_t count) { return scales.repeat_interleave(kBlock).slice(0, 0, count); }

// Scales of blocks of 256 of x, the last one filled up with zeros.
Tensor scalesOf(const Tensor& x) {
  const int64_t blocks = (x.numel() + kBlock - 1) / kBlock;
  const Tensor largest = at::constant_pad_nd(x.abs(), {0, blocks * kBlock - x.numel()}).view({blocks, kBlock}).amax(1);
  return at::where(largest.eq(0), largest, largest.div(kLargest).clamp_min(0x1p-126));
}

// What roundCode in adamw_element.h does.
Tensor roundCodes(const Tensor& x, const Tensor& random16, int64_t zero, int64_t most) {
  return bitsOf(x).add_(random16.mul(16)).add_(8).bitwise_right_shift_(20).sub_(zero).clamp_max_(most);
}

Tensor encodeMeans(const Tensor& m, const Tensor& scales, const Tensor& random16) {
  const Tensor x = m.abs().div(scales);
  const Tensor up = random16.to(at::kFloat).add_(0.5).mul_(kMeanSmallest * 0x1p-16f).lt(x).to(at::kLong);
  const Tensor code = at::where(x.ge(kMeanSmallest), roundCodes(x, random16, kMeanZero, 0x7f), up);
  return at::where(code.eq(0).logical_or_(m.eq(0)), at::zeros_like(code), code.add(m.lt(0).to(at::kLong), 128)).to(at::kByte);
}

Tensor decodeMeans(const Tensor& codes, const Tensor& scales) {
  const Tensor code = codes.to(at::kLong), magnitude = code.bitwise_and(0x7f);
  const Tensor value = floatsOf(magnitude.add(static_cast<int64_t>(kMeanZero)).bitwise_left_shift_(20)).mul(scales);
  return at::where(magnitude.eq(0), at::zeros_like(value), at::where(code.ge(128), value.neg(), value));
}

Tensor encodeSquares(const Tensor& v, const Tensor& scales, const Tensor& random16) {
  const Tensor x = v.div(scales);
  const Tensor code = roundCodes(x, random16, kSquareZero, 0xff);
  return at::where(v.eq(0), at::zeros_like(code), at::where(x.le(kSquareSmallest), at::ones_like(code), code)).to(at::kByte);
}

Tensor decodeSquares(const Tensor& codes, const Tensor& scales) {
  const Tensor value = floatsOf(codes.to(at::kLong).add_(static_cast<int64_t>(kSquareZero)).bitwise_left_shift_(20)).mul(scales);
  return at::where(codes.eq(0), at::zeros_like(value), value);
}

Tensor roundBfloat16s(const Tensor& x, const Tensor& random16) {
  const Tensor bits = bitsOf(x).add_(random16).bitwise_right_shift_(16).to(at::kShort);  // drops the upper bits
  return at::where(x.isnan(), at::full_like(bits, 0x7fc0), bits).view(at::kBFloat16);
}

Tensor masterOf(const Tensor& weight, const Tensor& low) {
  return weight.view(at::kShort).to(at::kInt).bitwise_left_shift_(16).add_(low.to(at::kInt)).view(at::kFloat);
}

// Overwrites `target` where `finite`, a boolean scalar on the device.
void write(const Tensor& finite, const Tensor& target, const Tensor& value) { target.copy_(at::where(finite, value, target)); }

void writeMaster(const Tensor& finite, const Tensor& weight, const Tensor& low, const Tensor& master) {
  const Tensor bits = master.contiguous().view(at::kInt).masked_fill(master.isnan(), 0x7fc00000);
  write(finite, low, bits.bitwise_and(0xffff).to(at::kShort));
  // An arithmetic shift leaves the sign's copies above, which the conversion to int16 drops.
  write(finite, weight.view(at::kShort), bits.add(0x8000).bitwise_right_shift(16).to(at::kShort));
}

// Elements [index, index + count) of one parameter, which lie at `flat` of the flat buffers.
void updatePart(const Update& u, size_t segment, int64_t index, int64_t flat, int64_t count, const Tensor& scale, const Tensor& finite) {
  const auto part = [&](const Tensor& tensor, int64_t at) { return tensor.slice(0, at, at + count); };
  const int64_t at = flat - u.begin;
  const bool coded = u.m.scalar_type() == at::kByte;
  const auto scales = [&](const Tensor& all) { return all.slice(0, at / kBlock, (at + count + kBlock - 1) / kBlock); };
  const Tensor weight = part(u.params[segment].view({-1}), index), mPart = part(u.m, at), vPart = part(u.v, at);
  const Tensor oldMean = coded ? decodeMeans(mPart, spread(scales(*u.mScale), count)) : mPart.to(at::kFloat);
  const Tensor oldSquare = coded ? decodeSquares(vPart, spread(scales(*u.vScale), count)) : vPart.to(at::kFloat);

  const Step& s = u.step;
  const Tensor g = part(u.grad, flat).to(at::kFloat).mul(scale);
  const Tensor m = oldMean.mul(s.beta1).add_(g.mul(s.gain1)), v = oldSquare.mul(s.beta2).add_(g.mul(s.gain2).mul_(g));
  const Tensor p = u.low.has_value() ? masterOf(weight, part(*u.low, flat)) : weight;
  const Tensor denominator = v.sqrt().mul_(s.rsqrtCorrection2).add_(s.eps);
  const Tensor master = p.sub(m.div(denominator).mul_(s.stepSize).add_(p.mul(u.decays[segment] ? s.decay : 0.f)));
  if (u.low.has_value()) writeMaster(finite, weight, part(*u.low, flat), master);
  else write(finite, weight, master);

  if (!coded && u.m.scalar_type() != at::kBFloat16) {
    write(finite, mPart, m);
    write(finite, vPart, v);
    return;
  }
  const Tensor words = randomWords(u, segment, index, count);
  const Tensor forMean = words.bitwise_and(0xffff), forSquare = words.bitwise_right_shift(16);
  if (!coded) {
    write(finite, mPart, roundBfloat16s(m, forMean));
    write(finite, vPart, roundBfloat16s(v, forSquare));
    return;
  }
  const Tensor ofMean = scalesOf(m), ofSquare = scalesOf(v);
  write(finite, mPart, encodeMeans(m, spread(ofMean, count), forMean));
  write(finite, vPart, encodeSquares(v, spread(ofSquare, count), forSquare));
  write(finite, scales(*u.mScale), ofMean);
  write(finite, scales(*u.vScale), ofSquare);
}

}  // namespace

void updateComposed(const Update& u) {
  const Tensor norm = u.norm.reshape({});
  const Tensor scale = at::full_like(norm, u.step.maxNorm).div_(norm.add(1e-6f)).clamp_max_(1);
  const Tensor finite = norm.isfinite();
  const auto [first, last] = u.touched();
  for (size_t i = first; i < last; i++) {
    const int64_t from = std::max(u.begin, u.starts[i]), to = std::min(u.end(), u.starts[i] + u.params[i].numel());
    if (from < to) updatePart(u, i, from - u.starts[i], from, to - from, scale, finite);
  }
}

}  // namespace grove::adamw
