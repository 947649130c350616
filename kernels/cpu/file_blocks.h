// The weight blocks of a GGUF file, decoded into one canonical form: unsigned codes and what they
// mean. Everything that reads file bytes (packing, dequantising) goes through here.
#pragma once

#include <cstddef>
#include <cstdint>

#include "foretoken/kernels/linear.h"

namespace foretoken::kernels {

inline constexpr int kMaxBlockValues = 256;

// What the 16 codes of IQ4_NL mean.
inline constexpr std::int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                               1,    13,   25,  38,  53,  69,  89,  113};

std::size_t file_block_bytes(WeightType type);  // bytes of weight_block_values(type) values

// One block. value = d * scale[i / scale_values] * (code[i] - offset) + or - the minimum:
//   Q8_0, Q4_0, Q5_0   d * (code - offset), offset 128, 8, 16
//   Q4_1, Q5_1         d * code + m
//   IQ4_NL             d * kIq4Values[code]
//   Q2_K               (d * scale[i/16]) * code - m * min[i/16]
//   Q4_K, Q5_K         (d * scale[i/32]) * code - m * min[i/32]
//   Q3_K, Q6_K         (d * scale[i/16]) * (code - offset), offset 4, 32
struct DecodedBlock {
  std::uint16_t d, m;  // fp16 bits; m is the minimum of Q4_1 and Q5_1, dmin of Q2_K, Q4_K and Q5_K
  std::int8_t scale[16];  // Q4_K, Q5_K: 8 of 6 bits; Q2_K: 16 of 4 bits; Q3_K, Q6_K: 16 signed
  std::uint8_t min[16];   // Q4_K, Q5_K: 8; Q2_K: 16
  std::uint8_t code[kMaxBlockValues];
};
void decode_file_block(WeightType type, const std::byte* block,
                       DecodedBlock* out);  // quantised types

// The values of a decoded block, as GGML's own dequantisation rounds them.
void block_values(WeightType type, const DecodedBlock& block, float* out);

}  // namespace foretoken::kernels
