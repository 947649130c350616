// Q5_0: 32 values d * (code - 16). File: d, fifth bits, nibbles.
#pragma once

#include "kernels/cpu/weight_blocks.h"

namespace foretoken::kernels {
namespace {

struct Q5_0 : CodedBlocks<Q5_0>, Block32Tile<Q5_0> {
  static constexpr Packing kPacking{.values = 32, .nibbles = true, .bits = 4};
  static constexpr int kOffset = 16;
  static void decode(const std::uint8_t* p, DecodedBlock& out) {
    out.d = load16(p);
    nibbles32(p + 6, out.code);
    fifth_bits32(load32(p + 2), out.code);
  }
};

}  // namespace
}  // namespace foretoken::kernels
