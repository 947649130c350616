// Q5_1: 32 values d * code + m. File: d, m, fifth bits, nibbles.
#pragma once

#include "kernels/cpu/weight_blocks.h"

namespace foretoken::kernels {
namespace {

struct Q5_1 : CodedBlocks<Q5_1>, Block32Tile<Q5_1> {
  static constexpr Packing kPacking{.values = 32, .nibbles = true, .bits = 4, .minimums = true};
  static constexpr int kOffset = 0;
  static void decode(const std::uint8_t* p, DecodedBlock& out) {
    out.d = load16(p);
    out.m = load16(p + 2);
    nibbles32(p + 8, out.code);
    fifth_bits32(load32(p + 4), out.code);
  }
};

}  // namespace
}  // namespace foretoken::kernels
