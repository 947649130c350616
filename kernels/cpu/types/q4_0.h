// Q4_0: 32 values d * (code - 8). File: d, nibbles.
#pragma once

#include "kernels/cpu/weight_blocks.h"

namespace foretoken::kernels {
namespace {

struct Q4_0 : CodedBlocks<Q4_0>, Block32Tile<Q4_0> {
  static constexpr Packing kPacking{.values = 32, .nibbles = true};
  static constexpr int kOffset = 8;
  static void decode(const std::uint8_t* p, DecodedBlock& out) {
    out.d = load16(p);
    nibbles32(p + 2, out.code);
  }
};

}  // namespace
}  // namespace foretoken::kernels
