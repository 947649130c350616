// What is asked of a weight type (cpu/types/), and the two ways to answer most of it: values of
// whole 16 or 32 bits (PlainFloats), and integer codes with scales (CodedBlocks).
//
//   record_bytes(), tail_bytes()             of a block of 16 outputs (layout/packed_weights.h)
//   put(file, lane, record, tail)            packs one output's block from the file's bytes
//   copy(from, from_tail, from_lane, to, to_tail, to_lane)
//   values(record, tail, lane, out)          of one output's packed block
//   file_values(file, out)                   the same of the file's, as GGML's dequantisation
//   rounds add_block(record, tail, lane, x, y)      the reference (the truth all kernels are tested
//                                            against): y plus the block's products with a row's
//   tile<V, R>(t)                            the same of R rows by vectors (linear_tile.h)
//
// Everything here has internal linkage, for it is compiled once an instruction set.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/linear_tile.h"
#include "kernels/layout/half.h"
#include "kernels/layout/packed_weights.h"

namespace foretoken::kernels {
namespace {

static_assert(std::endian::native == std::endian::little, "weights are read as they lie");

FORETOKEN_INLINE std::uint16_t load16(const std::uint8_t* p, int i = 0) {
  return load_lanes<std::uint16_t>(p + 2 * i);
}
FORETOKEN_INLINE std::uint32_t load32(const std::uint8_t* p) {
  return load_lanes<std::uint32_t>(p);
}
FORETOKEN_INLINE void store16(std::uint8_t* p, int i, std::uint16_t v) {
  store_lanes(p + 2 * i, v);
}
FORETOKEN_INLINE void store32(std::uint8_t* p, std::uint32_t v) { store_lanes(p, v); }

// Values of kBytes bytes, of which T::value(bits) is the float.
template <class T, int kBytes>
struct PlainFloats : FloatTile<T> {
  static constexpr std::size_t record_bytes() { return kBytes * kPackRows; }
  static constexpr std::size_t tail_bytes() { return 0; }
  static void put(const std::uint8_t* file, int lane, std::uint8_t* record, std::uint8_t*) {
    std::memcpy(record + kBytes * lane, file, kBytes);
  }
  static void copy(const std::uint8_t* from, const std::uint8_t*, int from_lane, std::uint8_t* to,
                   std::uint8_t*, int to_lane) {
    std::memcpy(to + kBytes * to_lane, from + kBytes * from_lane, kBytes);
  }
  static void values(const std::uint8_t* record, const std::uint8_t*, int lane, float* out) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, record + kBytes * lane, kBytes);
    *out = T::value(bits);
  }
  static void file_values(const std::uint8_t* file, float* out) { values(file, nullptr, 0, out); }
  // y = fma(w, x, y) over k
  static float add_block(const std::uint8_t* record, const std::uint8_t*, int lane, const float& x,
                         float y) {
    float w;
    values(record, nullptr, lane, &w);
    return __builtin_fmaf(w, x, y);
  }
};

// One block, unpacked. With the meaning c of a code (T::meaning), its scale s and minimum m of its
// sub-block: value = d * c, d * c + m, (d * s) * c, or (d * s) * c - m * min.
struct DecodedBlock {
  std::uint16_t d, m;  // fp16 bits
  std::int8_t scale[16];
  std::uint8_t min[16];
  std::uint8_t code[256];
};

// Four codes of one output at a time, as they lie in a lane vector's dword.
constexpr std::uint32_t bytes_of(std::uint32_t v) { return v * 0x01010101u; }
// Places, in Record256::pair_sum, of the sums of each 32 values.
constexpr int kPairPlace[8] = {0, 2, 1, 3, 4, 6, 5, 7};

// Codes with one scale a block, and of blocks of 256 one a sub-block. T has kPacking, kOffset (what
// to take from a code) and decode(file, block).
template <class T>
struct CodedBlocks {
  static constexpr std::size_t record_bytes() { return T::kPacking.record_bytes(); }
  static constexpr std::size_t tail_bytes() { return T::kPacking.tail_bytes(); }
  static constexpr int meaning(int code) { return code - T::kOffset; }

  static void put_block(const DecodedBlock& block, int lane, std::uint8_t* record,
                        std::uint8_t* tail) {
    constexpr Packing p = T::kPacking;
    for (std::size_t b = 0; b < p.planes(); ++b) {
      const std::uint8_t* code = block.code + 32 * b;
      const auto bits = [&](int from, int to, std::uint32_t mask) {  // codes 4 from.. to place `to`
        return (load32(code + 4 * from) & bytes_of(mask)) << to;
      };
      std::uint8_t* low = record + p.low_bytes() * b + 4 * lane;
      for (int i = 0; i < (p.bytes ? 8 : p.nibbles ? 4 : 0); ++i)
        store32(low + 64 * i, p.bytes ? load32(code + 4 * i) : bits(i, 0, 15) | bits(i + 4, 4, 15));
      const auto plane = [&](std::uint8_t* at, int n, int first, int width) {
        std::uint32_t v = 0;
        for (int f = 0; f < n; ++f)
          v |= (load32(code + 4 * f) >> first & bytes_of((1u << width) - 1)) << (width * f);
        store32(at + 4 * lane, v);
        code += 4 * n;
      };
      if constexpr (p.pairs >= 0) {
        plane(record + p.pairs_at() + 128 * b, 4, p.pairs, 2);
        plane(record + p.pairs_at() + 128 * b + 64, 4, p.pairs, 2);
        code -= 32;
      }
      if constexpr (p.bits >= 0) plane(record + p.bits_at() + 64 * b, 8, p.bits, 1);
    }
    for (int s = 0; s < p.scales; ++s) {
      const auto scale = static_cast<std::uint8_t>(block.scale[s]);
      std::uint8_t* at = record + p.scales_at();
      if constexpr (p.nibble_scales())
        at[four_at(s, lane)] = static_cast<std::uint8_t>(scale | block.min[s] << 4);
      else
        at[16 * s + lane] = scale;
      if constexpr (p.minimums && !p.nibble_scales())
        record[p.mins_at() + four_at(s, lane)] = block.min[s];
    }
    if constexpr (p.minimums) {
      store16(record + p.d_at(), lane, block.d);
      store16(record + p.m_at(), lane, block.m);
    } else if constexpr (T::tail_bytes() > 0) {
      store16(tail, lane, block.d);
    }
  }

  static void get_block(const std::uint8_t* record, const std::uint8_t* tail, int lane,
                        DecodedBlock& block) {
    constexpr Packing p = T::kPacking;
    for (std::size_t b = 0; b < p.planes(); ++b) {
      std::uint8_t* code = block.code + 32 * b;
      const std::uint8_t* low = record + p.low_bytes() * b + 4 * lane;
      for (int i = 0; i < 8; ++i) {
        std::uint32_t v = 0;
        if constexpr (p.bytes) v = load32(low + 64 * i);
        if constexpr (p.nibbles) v = load32(low + 64 * (i & 3)) >> (i < 4 ? 0 : 4) & bytes_of(15);
        if constexpr (p.pairs >= 0) {
          const std::uint32_t pairs =
              load32(record + p.pairs_at() + 128 * b + 64 * (i / 4) + 4 * lane);
          v |= (pairs >> (2 * (i & 3)) & bytes_of(3)) << p.pairs;
        }
        if constexpr (p.bits >= 0)
          v |= (load32(record + p.bits_at() + 64 * b + 4 * lane) >> i & bytes_of(1)) << p.bits;
        store32(code + 4 * i, v);
      }
    }
    for (int s = 0; s < p.scales; ++s) {
      const std::uint8_t* at = record + p.scales_at();
      if constexpr (p.nibble_scales()) {
        block.scale[s] = static_cast<std::int8_t>(at[four_at(s, lane)] & 15);
        block.min[s] = at[four_at(s, lane)] >> 4;
      } else {
        block.scale[s] = static_cast<std::int8_t>(at[16 * s + lane]);
        if constexpr (p.minimums) block.min[s] = record[p.mins_at() + four_at(s, lane)];
      }
    }
    block.d = block.m = 0;
    if constexpr (p.minimums) {
      block.d = load16(record + p.d_at(), lane);
      block.m = load16(record + p.m_at(), lane);
    } else if constexpr (T::tail_bytes() > 0) {
      block.d = load16(tail, lane);
    }
  }

  static void block_values(const DecodedBlock& block, float* out) {
    constexpr Packing p = T::kPacking;
    const float d = half_to_float(block.d), m = half_to_float(block.m);
    for (int i = 0; i < p.values; ++i) {
      const auto c = static_cast<float>(T::meaning(block.code[i]));
      if constexpr (p.scales > 0) {
        const int s = i / (p.values / p.scales);
        const float scale = d * static_cast<float>(block.scale[s]);
        out[i] = scale * c;
        if constexpr (p.minimums) out[i] -= m * static_cast<float>(block.min[s]);
      } else {
        out[i] = p.minimums ? d * c + m : d * c;
      }
    }
  }

  static void put(const std::uint8_t* file, int lane, std::uint8_t* record, std::uint8_t* tail) {
    DecodedBlock block;
    T::decode(file, block);
    put_block(block, lane, record, tail);
  }
  static void copy(const std::uint8_t* from, const std::uint8_t* from_tail, int from_lane,
                   std::uint8_t* to, std::uint8_t* to_tail, int to_lane) {
    DecodedBlock block;
    get_block(from, from_tail, from_lane, block);
    put_block(block, to_lane, to, to_tail);
  }
  static void values(const std::uint8_t* record, const std::uint8_t* tail, int lane, float* out) {
    DecodedBlock block;
    get_block(record, tail, lane, block);
    T::block_values(block, out);
  }
  static void file_values(const std::uint8_t* file, float* out) {
    DecodedBlock block;
    T::decode(file, block);
    T::block_values(block, out);
  }

  // y = fma(float(sum c q), d * scale, y); with a minimum: then y = fma(m, scale * sum q, y)
  static float add_block(const std::uint8_t* record, const std::uint8_t* tail, int lane,
                         const Record32& x, float y) {
    DecodedBlock block;
    get_block(record, tail, lane, block);
    std::int32_t sum = 0;
    for (int i = 0; i < 32; ++i) sum += T::meaning(block.code[i]) * x.q[i];
    y = __builtin_fmaf(static_cast<float>(sum), half_to_float(block.d) * x.scale, y);
    if constexpr (T::kPacking.minimums) y = __builtin_fmaf(half_to_float(block.m), x.scaled_sum, y);
    return y;
  }
  // s = float(sum_j scale_j sum c q), an exact integer sum over the sub-blocks j, at most
  // 256 * 32 * 127 * 128 < 2^27, times d; with minimums: s = fma(., d, float(sum_j min_j sum q) *
  // -m); y = fma(s, scale, y)
  static float add_block(const std::uint8_t* record, const std::uint8_t* tail, int lane,
                         const Record256& x, float y) {
    constexpr int kScales = T::kPacking.scales, kValues = 256 / kScales;
    DecodedBlock block;
    get_block(record, tail, lane, block);
    std::int32_t sum = 0, min_sum = 0;
    for (int j = 0; j < kScales; ++j) {
      std::int32_t part = 0, q_sum = 0;
      for (int i = kValues * j; i < kValues * (j + 1); ++i) {
        part += T::meaning(block.code[i]) * x.q[i];
        q_sum += x.q[i];
      }
      sum += block.scale[j] * part;
      if constexpr (T::kPacking.minimums) min_sum += block.min[j] * q_sum;
    }
    const float d = half_to_float(block.d);
    const float s = T::kPacking.minimums
                        ? __builtin_fmaf(static_cast<float>(sum), d,
                                         static_cast<float>(min_sum) * -half_to_float(block.m))
                        : static_cast<float>(sum) * d;
    return __builtin_fmaf(s, x.scale, y);
  }

 private:
  static constexpr std::size_t four_at(int s, int lane) {
    return static_cast<std::size_t>(s / 4 * 64 + lane * 4 + (s & 3));
  }
};

// 16 bytes hold values 0..15 in their low and 16..31 in their high nibbles.
[[maybe_unused]] void nibbles32(const std::uint8_t* q, std::uint8_t* code) {
  for (int i = 0; i < 16; ++i) {
    code[i] = q[i] & 15;
    code[i + 16] = q[i] >> 4;
  }
}
// A bit more of each of 32 codes, bit 4.
[[maybe_unused]] void fifth_bits32(std::uint32_t bits, std::uint8_t* code) {
  for (int i = 0; i < 32; ++i) code[i] = static_cast<std::uint8_t>(code[i] | (bits >> i & 1) << 4);
}
// 64 bytes hold 256 two-bit codes, by 128 values: bits 2j of byte i are value 32 j + i.
[[maybe_unused]] void pairs256(const std::uint8_t* q, std::uint8_t* code) {
  for (int i = 0; i < 256; ++i) code[i] = q[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
}
// 128 bytes of nibbles by 64 values: 32 low ones, then the 32 high ones.
[[maybe_unused]] void nibbles256(const std::uint8_t* q, std::uint8_t* code) {
  for (int i = 0; i < 256; ++i) code[i] = q[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
}
// 12 bytes of Q4_K and Q5_K: eight 6-bit scales and eight 6-bit minimums; the upper two bits of
// numbers 4..7 lie above the 6-bit numbers 0..3.
[[maybe_unused]] void six_bit_scales(const std::uint8_t* p, DecodedBlock& out) {
  for (int j = 0; j < 4; ++j) {
    out.scale[j] = static_cast<std::int8_t>(p[j] & 63);
    out.min[j] = p[j + 4] & 63;
    out.scale[j + 4] = static_cast<std::int8_t>((p[j + 8] & 15) | (p[j] >> 6) << 4);
    out.min[j + 4] = static_cast<std::uint8_t>((p[j + 8] >> 4) | (p[j + 4] >> 6) << 4);
  }
}

}  // namespace
}  // namespace foretoken::kernels
