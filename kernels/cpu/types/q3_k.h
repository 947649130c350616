// Q3_K: 256 values (d * scale[i / 16]) * (code - 4), scales of six bits, signed.
// File: third bits 32 (bit j of byte i: value 32 j + i), pairs 64, scales 12, d.
#pragma once

#include "kernels/cpu/weight_blocks.h"

namespace foretoken::kernels {
namespace {

struct Q3_K : CodedBlocks<Q3_K>, SignedTile<Q3_K> {
  static constexpr Packing kPacking{.values = 256, .pairs = 0, .bits = 2, .scales = 16};
  static constexpr int kOffset = 4;
  static void decode(const std::uint8_t* p, DecodedBlock& out) {
    pairs256(p + 32, out.code);
    for (int i = 0; i < 256; ++i)
      out.code[i] = static_cast<std::uint8_t>(out.code[i] | (p[i % 32] >> (i / 32) & 1) << 2);
    // Sixteen 6-bit scales, less 32; their upper two bits are the last four bytes.
    const std::uint8_t* s = p + 96;
    for (int j = 0; j < 16; ++j) {
      const int low = j < 8 ? s[j] & 15 : s[j - 8] >> 4;
      const int high = s[8 + j % 4] >> (2 * (j / 4)) & 3;
      out.scale[j] = static_cast<std::int8_t>((low | high << 4) - 32);
    }
    out.d = load16(p + 108);
  }
};

}  // namespace
}  // namespace foretoken::kernels
