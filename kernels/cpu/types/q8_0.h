// Q8_0: 32 values d * q. File: d, int8[32].
#pragma once

#include "kernels/cpu/weight_blocks.h"

namespace foretoken::kernels {
namespace {

struct Q8_0 : CodedBlocks<Q8_0>, Block32Tile<Q8_0> {
  static constexpr Packing kPacking{.values = 32, .bytes = true};
  static constexpr int kOffset = 128;
  static void decode(const std::uint8_t* p, DecodedBlock& out) {
    out.d = load16(p);
    for (int i = 0; i < 32; ++i) out.code[i] = p[2 + i] ^ 0x80;
  }
};

}  // namespace
}  // namespace foretoken::kernels
