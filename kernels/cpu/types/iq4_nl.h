// IQ4_NL: 32 values d * kMeanings[code]. File: d, nibbles.
#pragma once

#include "kernels/cpu/weight_blocks.h"

namespace foretoken::kernels {
namespace {

struct IQ4_NL : CodedBlocks<IQ4_NL>, Block32Tile<IQ4_NL> {
  static constexpr Packing kPacking{.values = 32, .nibbles = true};
  static constexpr int kOffset = 0;
  static constexpr std::int8_t kMeanings[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                1,    13,   25,  38,  53,  69,  89,  113};
  static constexpr int meaning(int code) { return kMeanings[code]; }
  static void decode(const std::uint8_t* p, DecodedBlock& out) {
    out.d = load16(p);
    nibbles32(p + 2, out.code);
  }
};

}  // namespace
}  // namespace foretoken::kernels
