// BF16: one value a block.
#pragma once

#include "kernels/cpu/weight_blocks.h"

namespace foretoken::kernels {
namespace {

struct BF16 : PlainFloats<BF16, 2> {
  static float value(std::uint32_t bits) { return bf16_to_float(static_cast<std::uint16_t>(bits)); }
  template <class V>
  static FORETOKEN_INLINE typename V::F load(const std::uint8_t* record) {
    return V::load_bf16(record);
  }
};

}  // namespace
}  // namespace foretoken::kernels
