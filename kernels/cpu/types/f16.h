// F16: one value a block.
#pragma once

#include "kernels/cpu/weight_blocks.h"

namespace foretoken::kernels {
namespace {

struct F16 : PlainFloats<F16, 2> {
  static float value(std::uint32_t bits) { return half_to_float(static_cast<std::uint16_t>(bits)); }
  template <class V>
  static FORETOKEN_INLINE typename V::F load(const std::uint8_t* record) {
    return V::load_half(record);
  }
};

}  // namespace
}  // namespace foretoken::kernels
