// The weight blocks of a GGUF file, decoded into one canonical form: unsigned codes and what they
// mean. Everything that reads file bytes (packing, dequantising) goes through here.
#pragma once

#include <cstddef>
#include <cstdint>

#include "foretoken/kernels/linear.h"

namespace foretoken::kernels {

inline constexpr int kMaxBlockValues = 256;

std::size_t file_block_bytes(WeightType type);  // bytes of weight_block_values(type) values

// One block. value = d * scale[i / scale_values] * (code[i] - offset) + or - the minimum:
//   Q8_0, Q4_0, Q5_0   d * (code - offset), offset 128, 8, 16
//   Q4_1               d * code + m
//   Q4_K               (d * scale[i/32]) * code - m * min[i/32]
//   Q6_K               (d * scale[i/16]) * (code - 32)
struct DecodedBlock {
  std::uint16_t d, m;     // fp16 bits; m is Q4_1's minimum, Q4_K's dmin
  std::int8_t scale[16];  // Q4_K: 8 of 6 bits; Q6_K: 16 signed
  std::uint8_t min[8];    // Q4_K
  std::uint8_t code[kMaxBlockValues];
};
void decode_file_block(WeightType type, const std::byte* block,
                       DecodedBlock* out);  // quantised types

// The values of a decoded block, as GGML's own dequantisation rounds them.
void block_values(WeightType type, const DecodedBlock& block, float* out);

}  // namespace foretoken::kernels
