// Q4_1: 32 values d * code + m. File: d, m, nibbles.
#pragma once

#include "kernels/cpu/weight_blocks.h"

namespace foretoken::kernels {
namespace {

struct Q4_1 : CodedBlocks<Q4_1>, Block32Tile<Q4_1> {
  static constexpr Packing kPacking{.values = 32, .nibbles = true, .minimums = true};
  static constexpr int kOffset = 0;
  static void decode(const std::uint8_t* p, DecodedBlock& out) {
    out.d = load16(p);
    out.m = load16(p + 2);
    nibbles32(p + 4, out.code);
  }
};

}  // namespace
}  // namespace foretoken::kernels
