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
//   Q4_K                record: 8 nibbles, scale[8][16] bytes, min[2][16][4]
//                       bytes, d[16], dmin[16]                                   2368
//   Q6_K                record: 8 nibbles, 8 x high pairs, scale[16][16] int8    3328; tail: d[16]
//       high pairs of 32 values: 2 lane vectors; bits 2f, 2f+1 of vector v are those of
//       lane vector 4v + f
//
// (d and m: fp16.) These are the file's own bytes per value, except Q4_K, whose 6-bit scales take a
// byte each: 148 bytes instead of 144. Every record is a multiple of 64 bytes, hence aligned.
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
    case WeightType::kQ4_K:
      return 2368;
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
    case WeightType::kQ6_K:
      return 32;
    default:
      return 0;
  }
}

// Offsets inside a Q4_K record and a Q6_K record.
inline constexpr std::size_t kQ4KScales = 2048, kQ4KMins = 2176, kQ4KD = 2304, kQ4KDmin = 2336;
inline constexpr std::size_t kQ6KPairs = 2048, kQ6KScales = 3072;

inline std::size_t group_bytes(WeightType type, std::int64_t n_in) {
  const auto n_blocks = static_cast<std::size_t>(n_in / weight_block_values(type));
  return (n_blocks * (record_bytes(type) + tail_bytes(type)) + 63) / 64 * 64;
}
inline std::size_t tail_offset(WeightType type, std::int64_t n_in) {
  return static_cast<std::size_t>(n_in / weight_block_values(type)) * record_bytes(type);
}
inline std::int64_t n_groups(std::int64_t n_out) { return (n_out + kPackRows - 1) / kPackRows; }

}  // namespace foretoken::kernels
