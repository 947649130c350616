// F32: one value a block.
#pragma once

#include "kernels/cpu/weight_blocks.h"

namespace foretoken::kernels {
namespace {

struct F32 : PlainFloats<F32, 4> {
  static float value(std::uint32_t bits) { return float_of(bits); }
  template <class V>
  static FORETOKEN_INLINE typename V::F load(const std::uint8_t* record) {
    return V::load(reinterpret_cast<const float*>(record));
  }
};

}  // namespace
}  // namespace foretoken::kernels
