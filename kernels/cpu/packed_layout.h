// The packed weight layout, one for all instruction sets. Sixteen consecutive outputs form a group;
// a group is contiguous, so that a thread that owns a range of groups reads one stream.
//
//   group = records[n_in / block] , tail[n_in / block] , padding to 64 bytes
//
// A "lane vector" is 64 bytes: dword o belongs to output o of the group and holds four consecutive
// k values as bytes. Lane vector j of a 32-value block holds k = 4j .. 4j+3. So a 32-bit integer
// lane is one output, and an activation dword is broadcast to all of them.
//
//   nibbles(32 values)  4 lane vectors: vector i holds lane vector i in its low nibbles and i+4 in
//                       its high ones                                            256 bytes
//   F32, F16, BF16      record per k: [16] values; no tail
//   Q8_0                record: 8 lane vectors of w + 128                        512; tail: d[16]
//   Q4_0                record: nibbles                                          256; tail: d[16]
//   Q4_1                record: nibbles, d[16], m[16]                            320
//   Q5_0                record: nibbles, fifth bits: bit j of byte i is that of
//                       byte i of lane vector j                                  320; tail: d[16]
//   Q5_1                record: as Q5_0, d[16], m[16]                            384
//   IQ4_NL              as Q4_0
//   Q2_K                record: 8 x pairs, scale and minimum nibbles [4][16][4]
//                       (scale low), d[16], dmin[16]                             1344
//   Q3_K                record: 8 x pairs, 8 x third bits (as fifth bits),
//                       scale[16][16] int8                                       1792; tail: d[16]
//   Q4_K, Q5_K          record: 8 nibbles, Q5_K: 8 x fifth bits, scale[8][16]
//                       bytes, min[2][16][4] bytes, d[16], dmin[16]        2368, 2880
//   Q6_K                record: 8 nibbles, 8 x high pairs, scale[16][16] int8    3328; tail: d[16]
//       pairs of 32 values: 2 lane vectors; bits 2f, 2f+1 of vector v are those of
//       lane vector 4v + f
//
// (d and m: fp16.) These are the file's own bytes per value, except for 6-bit scales, which take a
// byte each: 148 bytes instead of 144 in Q4_K, 180 for 176 in Q5_K, 114 for 110 in Q3_K. Every
// record is a multiple of 64 bytes, hence aligned.
#pragma once

#include <cstddef>
#include <cstdint>

#include "foretoken/kernels/linear.h"

namespace foretoken::kernels {

constexpr std::size_t record_bytes(WeightType type) {
  switch (type) {
    case WeightType::kF32:
      return 64;
    case WeightType::kF16:
      return 32;
    case WeightType::kBF16:
      return 32;
    case WeightType::kQ8_0:
      return 512;
    case WeightType::kQ4_0:
      return 256;
    case WeightType::kQ4_1:
      return 320;
    case WeightType::kQ5_0:
      return 320;
    case WeightType::kQ5_1:
      return 384;
    case WeightType::kIQ4_NL:
      return 256;
    case WeightType::kQ2_K:
      return 1344;
    case WeightType::kQ3_K:
      return 1792;
    case WeightType::kQ4_K:
      return 2368;
    case WeightType::kQ5_K:
      return 2880;
    case WeightType::kQ6_K:
      return 3328;
  }
  return 0;
}

constexpr std::size_t tail_bytes(WeightType type) {
  switch (type) {
    case WeightType::kQ8_0:
    case WeightType::kQ4_0:
    case WeightType::kQ5_0:
    case WeightType::kIQ4_NL:
    case WeightType::kQ3_K:
    case WeightType::kQ6_K:
      return 32;
    default:
      return 0;
  }
}

// Offsets inside a record of 256 values.
inline constexpr std::size_t kQ5KFifths = 2048;
// Of the scales of Q4_K and Q5_K; then come minimums, d and dmin.
constexpr std::size_t k_scales(WeightType type) { return type == WeightType::kQ5_K ? 2560 : 2048; }
constexpr std::size_t k_mins(WeightType type) { return k_scales(type) + 128; }
constexpr std::size_t k_d(WeightType type) { return k_scales(type) + 256; }
constexpr std::size_t k_dmin(WeightType type) { return k_scales(type) + 288; }
inline constexpr std::size_t kQ6KPairs = 2048, kQ6KScales = 3072;
inline constexpr std::size_t kQ3KThirds = 1024, kQ3KScales = 1536;
inline constexpr std::size_t kQ2KScales = 1024, kQ2KD = 1280, kQ2KDmin = 1312;

inline std::size_t group_bytes(WeightType type, std::int64_t n_in) {
  const auto n_blocks = static_cast<std::size_t>(n_in / weight_block_values(type));
  return (n_blocks * (record_bytes(type) + tail_bytes(type)) + 63) / 64 * 64;
}
inline std::size_t tail_offset(WeightType type, std::int64_t n_in) {
  return static_cast<std::size_t>(n_in / weight_block_values(type)) * record_bytes(type);
}
inline std::int64_t n_groups(std::int64_t n_out) { return (n_out + kPackRows - 1) / kPackRows; }

}  // namespace foretoken::kernels
