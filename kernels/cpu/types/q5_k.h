// Q5_K: as Q4_K, with codes of five bits.
// File: d, dmin, scales and minimums 12, fifth bits 32 (bit j of byte i: value 32 j + i), nibbles
// by 64 values.
#pragma once

#include "kernels/cpu/weight_blocks.h"

namespace foretoken::kernels {
namespace {

struct Q5_K : CodedBlocks<Q5_K>, MinimumTile<Q5_K> {
  static constexpr Packing kPacking{
      .values = 256, .nibbles = true, .bits = 4, .scales = 8, .minimums = true};
  static constexpr int kOffset = 0;
  static void decode(const std::uint8_t* p, DecodedBlock& out) {
    out.d = load16(p);
    out.m = load16(p + 2);
    six_bit_scales(p + 4, out);
    nibbles256(p + 48, out.code);
    for (int i = 0; i < 256; ++i)
      out.code[i] = static_cast<std::uint8_t>(out.code[i] | (p[16 + i % 32] >> (i / 32) & 1) << 4);
  }
};

}  // namespace
}  // namespace foretoken::kernels
