// Q4_K: 256 values (d * scale[i / 32]) * code - dmin * min[i / 32], of six bits each.
// File: d, dmin, scales and minimums 12, nibbles by 64 values.
#pragma once

#include "kernels/cpu/weight_blocks.h"

namespace foretoken::kernels {
namespace {

struct Q4_K : CodedBlocks<Q4_K>, MinimumTile<Q4_K> {
  static constexpr Packing kPacking{.values = 256, .nibbles = true, .scales = 8, .minimums = true};
  static constexpr int kOffset = 0;
  static void decode(const std::uint8_t* p, DecodedBlock& out) {
    out.d = load16(p);
    out.m = load16(p + 2);
    six_bit_scales(p + 4, out);
    nibbles256(p + 16, out.code);
  }
};

}  // namespace
}  // namespace foretoken::kernels
