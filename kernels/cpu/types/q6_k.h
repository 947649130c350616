// Q6_K: 256 values (d * scale[i / 16]) * (code - 32), scales of eight bits, signed.
// File: low nibbles 128, high pairs 64, scales 16, d.
#pragma once

#include "kernels/cpu/weight_blocks.h"

namespace foretoken::kernels {
namespace {

struct Q6_K : CodedBlocks<Q6_K>, SignedTile<Q6_K> {
  static constexpr Packing kPacking{.values = 256, .nibbles = true, .pairs = 4, .scales = 16};
  static constexpr int kOffset = 32;
  static void decode(const std::uint8_t* p, DecodedBlock& out) {
    for (int i = 0; i < 256; ++i) {
      const int half = i / 128, quarter = i / 32 % 4, j = i % 32;
      const int low = p[64 * half + i % 64] >> (quarter / 2 * 4) & 15;
      const int high = p[128 + 32 * half + j] >> (2 * quarter) & 3;
      out.code[i] = static_cast<std::uint8_t>(low | high << 4);
    }
    std::memcpy(out.scale, p + 192, 16);
    out.d = load16(p + 208);
  }
};

}  // namespace
}  // namespace foretoken::kernels
