// The packed weight layout, one for all instruction sets and devices. Sixteen consecutive outputs
// form a group; a group is contiguous, so that a thread that owns a range of groups reads one
// stream.
//
//   group = records[n_in / block] , tail[n_in / block] , padding to 64 bytes
//
// A "lane vector" is 64 bytes: dword o belongs to output o of the group and holds four consecutive
// k values as bytes. Lane vector j of 32 values holds k = 4j .. 4j+3. So a 32-bit integer lane is
// one output, and an activation dword is broadcast to all of them. Of each 32 values a record has
//
//   bytes     8 lane vectors                                                        512 bytes
//   nibbles   4 lane vectors: vector i holds lane vector i in its low nibbles and
//             i+4 in its high ones                                                  256
//   pairs     2 lane vectors; bits 2f, 2f+1 of vector v are those of lane vector
//             4v + f                                                                128
//   bits      1 lane vector: bit j of byte i is that of byte i of lane vector j      64
//
// first all its bytes or nibbles, then all its pairs, then all its bits; then scales [n][16] bytes;
// minimums [2][16][4] bytes, of sixteen sub-blocks nibbles with the scales [4][16][4], scale low;
// then d[16] and m[16], fp16. Without minimums d is in the tail. Floats: [16] values a record.
//
// These are the file's own bytes per value, except for 6-bit scales, which take a byte each: 148
// bytes instead of 144 in Q4_K, 180 for 176 in Q5_K, 114 for 110 in Q3_K. Every record of codes is
// a multiple of 64 bytes, hence aligned.
#pragma once

#include <cstddef>

namespace foretoken::kernels {

// What a block of codes consists of.
struct Packing {
  int values;  // 32 or 256
  bool bytes = false, nibbles = false;
  int pairs = -1, bits = -1;  // the lowest bit of a code that the plane holds; -1: no such plane
  int scales = 0;             // of sub-blocks: 0, 8 or 16
  bool minimums = false;

  constexpr int code_bits() const {
    return bytes ? 8 : (nibbles ? 4 : 0) + (pairs < 0 ? 0 : 2) + (bits < 0 ? 0 : 1);
  }
  constexpr std::size_t planes() const { return static_cast<std::size_t>(values) / 32; }
  constexpr std::size_t low_bytes() const { return bytes ? 512 : nibbles ? 256 : 0; }
  constexpr std::size_t pairs_at() const { return planes() * low_bytes(); }
  constexpr std::size_t bits_at() const { return pairs_at() + (pairs < 0 ? 0 : planes() * 128); }
  constexpr std::size_t scales_at() const { return bits_at() + (bits < 0 ? 0 : planes() * 64); }
  constexpr bool nibble_scales() const { return minimums && scales == 16; }
  constexpr std::size_t mins_at() const {
    return scales_at() + static_cast<std::size_t>(scales) * 16;
  }
  constexpr std::size_t d_at() const { return mins_at() + (minimums && scales == 8 ? 128 : 0); }
  constexpr std::size_t m_at() const { return d_at() + 32; }
  constexpr std::size_t record_bytes() const { return minimums ? m_at() + 32 : d_at(); }
  constexpr std::size_t tail_bytes() const { return minimums ? 0 : 32; }
};

}  // namespace foretoken::kernels
