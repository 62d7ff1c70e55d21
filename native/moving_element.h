// What a moving average of bfloat16 weights does to one element: the same code on the CPU and in kernels/moving_average.cu, to the same bits.
#pragma once

#include "adamw_element.h"

namespace grove::moving {

// x + share (y - x) as at::lerp has it, rounded to one of the two bfloat16 around it, each as likely as it is near. word: of adamw::randomWords, whose
// lower 16 bits count.
GROVE_BOTH uint16_t moved(uint16_t x, uint16_t y, float share, uint32_t word) {
  const float from = adamw::fromBfloat16(x), to = adamw::fromBfloat16(y), way = adamw::plus(to, -from);
  const float exact =
      share < 0.5f ? adamw::plus(from, adamw::times(share, way)) : adamw::plus(to, -adamw::times(way, adamw::plus(1, -share)));
  return adamw::roundBfloat16(exact, word & 0xffffu);
}

}  // namespace grove::moving
