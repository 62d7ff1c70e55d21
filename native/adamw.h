// The parts of grove::adamw_: its arguments and the ways to compute it.
#pragma once

#include <ATen/ATen.h>

#include "adamw_element.h"

namespace grove::adamw {

// Arguments of grove::adamw_, explained in adamw.cc.
struct Update {
  at::TensorList params;
  at::IntArrayRef starts, keys;
  std::vector<uint8_t> decays;  // 1 or 0
  at::Tensor grad;
  std::optional<at::Tensor> low;
  at::Tensor m, v;
  std::optional<at::Tensor> mScale, vScale;
  at::Tensor norm;
  int64_t begin;
  Step step;

  int64_t end() const { return begin + m.numel(); }
  // The parameters that have elements in [begin, end), as a range of indices.
  std::pair<size_t, size_t> touched() const;
};

void updateCpu(const Update& update);
void updateComposed(const Update& update);

}  // namespace grove::adamw
