// The vector linear kernels: tiles of up to V::kRows rows by V::kLanes outputs, one function a
// family of weight types, over an instruction set's vectors V (isa/linear.cpp). The same integer
// sums and float operations, in the same order, as the reference (weight_blocks.h): a vector lane
// is one output, so no sum ever crosses lanes, and a row's operations do not depend on how many
// rows share the tile.
//
// Each block's weights are unpacked once for all R rows of a tile; a row then costs one
// multiply-add instruction per four values and lane, its activation dword broadcast from memory.
//
// V::kRows, the rows of a tile: registers hold 8 unpacked lane vectors, and per row one accumulator
// and, for blocks of 256, one sum of the block. AVX-512: 8 + 2 * 8 + 5 temporaries = 29 of 32.
// AVX2: 8 + 4 + 4 = 16 of 16 for blocks of 32; blocks of 256 spill their sums, and still four rows
// beat two by 1.2 at eight rows.
#pragma once

#include "kernels/cpu/activations.h"
#include "kernels/cpu/simd.h"
#include "kernels/layout/packed_weights.h"

namespace foretoken::kernels {
namespace {

#define FORETOKEN_LAMBDA_INLINE __attribute__((always_inline))

// fn<first, count>() over [0, N) in groups of at most G.
template <int N, int G, int First = 0, class Fn>
FORETOKEN_INLINE void in_groups(Fn&& fn) {
  if constexpr (First < N) {
    fn.template operator()<First, (N - First < G ? N - First : G)>();
    in_groups<N, G, First + G>(fn);
  }
}

template <class V>
FORETOKEN_INLINE void unpack_nibbles(const std::uint8_t* plane, typename V::I (&w)[8]) {
  const typename V::I mask = V::set_byte(15);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const typename V::I packed = V::load_int(plane + 64 * i);
    w[i] = V::bit_and(packed, mask);
    w[i + 4] = V::bit_and(V::template shift_words_right<4>(packed), mask);
  }
}

// Moves bit field `From` of every byte to bit `To`; neighbours' bits that come along are masked
// off.
template <class V, int From, int To>
FORETOKEN_INLINE typename V::I move_bits(typename V::I v) {
  if constexpr (From > To) {
    return V::template shift_words_right<From - To>(v);
  } else if constexpr (From < To) {
    return V::template shift_left<To - From>(v);
  } else {
    return v;
  }
}

// A plane of bits to bit `To` of eight lane vectors.
template <class V, int To>
FORETOKEN_INLINE void add_bits(typename V::I bits, typename V::I (&w)[8]) {
  const typename V::I mask = V::set_byte(1 << To);
  w[0] = V::or_masked(w[0], move_bits<V, 0, To>(bits), mask);
  w[1] = V::or_masked(w[1], move_bits<V, 1, To>(bits), mask);
  w[2] = V::or_masked(w[2], move_bits<V, 2, To>(bits), mask);
  w[3] = V::or_masked(w[3], move_bits<V, 3, To>(bits), mask);
  w[4] = V::or_masked(w[4], move_bits<V, 4, To>(bits), mask);
  w[5] = V::or_masked(w[5], move_bits<V, 5, To>(bits), mask);
  w[6] = V::or_masked(w[6], move_bits<V, 6, To>(bits), mask);
  w[7] = V::or_masked(w[7], move_bits<V, 7, To>(bits), mask);
}

// A plane of pairs to bits `To`, `To` + 1 of four lane vectors.
template <class V, int To>
FORETOKEN_INLINE void add_pairs(typename V::I pairs, typename V::I* w) {
  const typename V::I mask = V::set_byte(3 << To);
  w[0] = V::or_masked(w[0], move_bits<V, 0, To>(pairs), mask);
  w[1] = V::or_masked(w[1], move_bits<V, 2, To>(pairs), mask);
  w[2] = V::or_masked(w[2], move_bits<V, 4, To>(pairs), mask);
  w[3] = V::or_masked(w[3], move_bits<V, 6, To>(pairs), mask);
}

// Codes 32 j .. 32 j + 31 of a block as eight lane vectors, kUp bits up. record: from the tile's
// lane.
template <class V, class T, int kUp = 0>
FORETOKEN_INLINE void unpack_codes(const std::uint8_t* record, int j, typename V::I (&w)[8]) {
  constexpr Packing p = T::kPacking;
  if constexpr (p.nibbles) {
    unpack_nibbles<V>(record + 256 * j, w);
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) w[i] = V::set_int(0);
  }
  if constexpr (p.bits >= 0)
    add_bits<V, p.bits + kUp>(V::load_int(record + p.bits_at() + 64 * j), w);
  if constexpr (p.pairs >= 0) {
    const std::uint8_t* pairs = record + p.pairs_at() + 128 * j;
    add_pairs<V, p.pairs + kUp>(V::load_int(pairs), w);
    add_pairs<V, p.pairs + kUp>(V::load_int(pairs + 64), w + 4);
  }
}

// Adds the bias and stores row r's lanes; `lanes` of the 16 outputs exist.
template <class V>
FORETOKEN_INLINE void store_outputs(typename V::F sum, const float* bias, float* y, int lanes) {
  if (lanes >= V::kLanes) {
    if (bias != nullptr) sum = V::add(sum, V::load(bias));
    V::store(y, sum);
    return;
  }
  float lane[V::kLanes];
  V::store(lane, sum);
  for (int i = 0; i < lanes; ++i) y[i] = bias != nullptr ? lane[i] + bias[i] : lane[i];
}

// How far ahead of its use the first tile over a group fetches weights, into the second-level
// cache. The hardware's own prefetcher starts anew at every page and falls behind when several rows
// lengthen the loop. A core that reads 14 GB/s with 150 ns of latency has 2.1 KB in flight; 3 KB
// leaves room. Not 4 KB: what is fetched would share its cache set with what is read. Measured on
// Granite Rapids with Q4_K, share of the read bandwidth at one and four rows: none 84 and 50 %, 4
// KB into the first level 85 and 69 %, 3 KB into the second 96 and 75 %.
constexpr std::size_t kPrefetchBytes = 3072;

// Activations that stay in the second-level cache while every group of the range passes over them:
// half of 2 MiB, a core's share on current servers (1 MiB on older ones).
constexpr std::int64_t kResidentActivationBytes = 1 << 20;

// Pointers of one tile: lanes [lane, lane + V::kLanes) of a group, R rows.
struct Tile {
  const std::uint8_t* records;
  const std::uint8_t* tail;
  std::int64_t n_blocks;
  const void* x;          // first row's first record (float weights: its values)
  std::int64_t x_stride;  // records (float weights: values) from a block (row) to the next
  const float* bias;      // of the first lane, or null
  float* y;               // of the first lane and row
  std::int64_t y_stride;
  int lanes;  // outputs that exist from the first lane on
  int lane;   // 0, or 8 for the upper half where V has 8 lanes
  // What is fetched while a byte is read lies so far behind it: of the records, and of the group's
  // tail (the next group's); 0 for all but the first tile over the group.
  std::size_t ahead, tail_ahead;
};

// A later tile over the same group fetches what it reads, which is there already: a branch around
// the fetches in the loop over blocks took 15 % of its time.
template <std::size_t Bytes>
FORETOKEN_INLINE void prefetch(const std::uint8_t* p) {
#pragma GCC unroll 64
  for (std::size_t i = 0; i < Bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

// Blocks of 32, one scale each and perhaps a minimum.
template <class T>
struct Block32Tile {
  template <class V, int R>
  static void tile(const Tile& t) {
    using F = typename V::F;
    using I = typename V::I;
    constexpr Packing p = T::kPacking;
    constexpr bool kMeanings = requires { T::kMeanings; };
    const std::uint8_t* record = t.records + 4 * t.lane;
    const std::uint8_t* scales = t.tail + 2 * t.lane;
    const auto* x = static_cast<const Record32*>(t.x);
    [[maybe_unused]] I meanings;
    if constexpr (kMeanings) meanings = V::whole_byte_table(T::kMeanings);
    const std::size_t ahead = t.ahead;
    [[maybe_unused]] const std::size_t tail_ahead = t.tail_ahead;
    F sum[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sum[r] = V::set(0.0f);
    for (std::int64_t b = 0; b < t.n_blocks; ++b) {
      prefetch<T::record_bytes()>(record + ahead);
      if constexpr (!p.minimums) __builtin_prefetch(scales + tail_ahead, 0, 2);
      I w[8];
      if constexpr (p.bytes) {
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) w[j] = V::load_whole_bytes(record + 64 * j);
      } else {
        unpack_codes<V, T>(record, 0, w);
      }
      if constexpr (kMeanings) {
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) w[j] = V::look_up(meanings, w[j]);
      }
      F d, m;
      if constexpr (p.minimums) {
        d = V::load_half(record - 2 * t.lane + p.d_at());
        m = V::load_half(record - 2 * t.lane + p.m_at());
      } else {
        d = V::load_half(scales);
      }
      in_groups<R, V::kDotRows>([&]<int kFirst, int kCount>() FORETOKEN_LAMBDA_INLINE {
        I dot[kCount];
#pragma GCC unroll 16
        for (int g = 0; g < kCount; ++g) {
          const Record32& row = x[kFirst + g];
          if constexpr (p.bytes || kMeanings) {
            dot[g] = V::whole_bytes_sum(row);
          } else if constexpr (T::kOffset == 8) {
            dot[g] = V::set_int(row.minus8_sum);
          } else if constexpr (T::kOffset == 16) {
            dot[g] = V::template shift_left<1>(V::set_int(row.minus8_sum));
          } else {
            static_assert(T::kOffset == 0);
            dot[g] = V::set_int(0);
          }
        }
        constexpr int kMax = p.bytes || kMeanings ? 255 : (1 << p.code_bits()) - 1;
        V::template dot<kMax, 8, kCount>(dot, w, x[kFirst].q, static_cast<int>(sizeof(Record32)));
#pragma GCC unroll 16
        for (int g = 0; g < kCount; ++g) {
          const int r = kFirst + g;
          sum[r] = V::fma(V::to_float(dot[g]), V::mul(d, V::set(x[r].scale)), sum[r]);
          if constexpr (p.minimums) sum[r] = V::fma(m, V::set(x[r].scaled_sum), sum[r]);
        }
      });
      record += T::record_bytes();
      scales += T::tail_bytes();
      x += t.x_stride;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) store_outputs<V>(sum[r], t.bias, t.y + r * t.y_stride, t.lanes);
  }
};

// sum[r] += scale * (products of N lane vectors with row r's values from `first` on), codes at most
// kMax. kOffset: codes are 32 too high, which is taken out through the sums of each 16 values.
template <class V, int kMax, int N, bool kOffset, int R>
FORETOKEN_INLINE void add_scaled_products(const typename V::I* w, const Record256* x, int first,
                                          typename V::I scale, typename V::I (&sum)[R]) {
  in_groups<R, V::kDotRows>([&]<int kFirst, int kCount>() FORETOKEN_LAMBDA_INLINE {
    V::template add_scaled_dot<kMax, N, kCount, kOffset>(sum + kFirst, w, x + kFirst, first, scale);
  });
}

// Blocks of 256 with scales and minimums of eight sub-blocks.
template <class T>
struct MinimumTile {
  static constexpr bool kAmx = true;
  template <class V, int R>
  static void tile(const Tile& t) {
    using F = typename V::F;
    using I = typename V::I;
    constexpr Packing p = T::kPacking;
    constexpr int kMax = (1 << p.code_bits()) - 1;
    const std::uint8_t* record = t.records;
    const auto* x = static_cast<const Record256*>(t.x);
    const std::size_t ahead = t.ahead;
    F sum[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sum[r] = V::set(0.0f);
    for (std::int64_t b = 0; b < t.n_blocks; ++b) {
      // The integer sum of the block as a float.
      F block_sum[R];
      const auto unpack = [&](int j, I(&w)[8]) FORETOKEN_LAMBDA_INLINE {
        prefetch<T::record_bytes() / 8>(record + T::record_bytes() / 8 * j + ahead);
        unpack_codes<V, T>(record + 4 * t.lane, j, w);
        return V::load_u8(record + p.scales_at() + 16 * j + t.lane);
      };
      if constexpr (V::kFloatSums && p.code_bits() == 4) {
        // Where a product of integers takes two instructions: four sub-blocks' sum is at most
        // 4 * 32 * 15 * 127 * 63 < 2^24, so floats hold it exactly, and the sum of two such is
        // rounded once, as an integer that is made a float is.
#pragma GCC unroll 1
        for (int half = 0; half < 2; ++half) {
          F part[R];
#pragma GCC unroll 16
          for (int r = 0; r < R; ++r) part[r] = V::set(0.0f);
#pragma GCC unroll 1
          for (int j = 4 * half; j < 4 * half + 4; ++j) {
            I w[8];
            const F scale = V::to_float(unpack(j, w));
            in_groups<R, V::kDotRows>([&]<int kFirst, int kCount>() FORETOKEN_LAMBDA_INLINE {
              V::template add_float_dot<kMax, 8, kCount>(part + kFirst, w, x + kFirst, 32 * j,
                                                         scale);
            });
          }
#pragma GCC unroll 16
          for (int r = 0; r < R; ++r)
            block_sum[r] = half == 0 ? part[r] : V::add(block_sum[r], part[r]);
        }
      } else {
        I whole[R];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) whole[r] = V::set_int(0);
#pragma GCC unroll 1
        for (int j = 0; j < 8; ++j) {
          I w[8];
          const I scale = unpack(j, w);
          add_scaled_products<V, kMax, 8, false>(w, x, 32 * j, scale, whole);
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) block_sum[r] = V::to_float(whole[r]);
      }
      const F d = V::load_half(record + p.d_at() + 2 * t.lane);
      const F minus_dmin = V::negate(V::load_half(record + p.m_at() + 2 * t.lane));
      const I low = V::load_int(record + p.mins_at() + 4 * t.lane);
      const I high = V::load_int(record + p.mins_at() + 64 + 4 * t.lane);
      const I mask = V::set_word(0xff);
      const I m02 = V::bit_and(low, mask), m13 = V::template shift_words_right<8>(low);
      const I m46 = V::bit_and(high, mask), m57 = V::template shift_words_right<8>(high);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const std::int16_t* pair = x[r].pair_sum;
        I s = V::add_word_products(V::set_int(0), m02, broadcast4(pair));
        s = V::add_word_products(s, m13, broadcast4(pair + 2));
        s = V::add_word_products(s, m46, broadcast4(pair + 4));
        s = V::add_word_products(s, m57, broadcast4(pair + 6));
        const F total = V::fma(block_sum[r], d, V::mul(V::to_float(s), minus_dmin));
        sum[r] = V::fma(total, V::set(x[r].scale), sum[r]);
      }
      record += T::record_bytes();
      x += t.x_stride;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) store_outputs<V>(sum[r], t.bias, t.y + r * t.y_stride, t.lanes);
  }
};

// Blocks of 256 with signed scales of sixteen sub-blocks. Fewer bits than six stand for the upper
// ones of six: 2^kUp code - 32, and d is divided.
template <class T>
struct SignedTile {
  static constexpr bool kAmx = true;
  template <class V, int R>
  static void tile(const Tile& t) {
    using F = typename V::F;
    using I = typename V::I;
    const std::uint8_t* record = t.records;
    const std::uint8_t* scales = t.tail + 2 * t.lane;
    constexpr int kUp = 6 - T::kPacking.code_bits();
    const auto* x = static_cast<const Record256*>(t.x);
    const std::size_t ahead = t.ahead, tail_ahead = t.tail_ahead;
    F sum[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sum[r] = V::set(0.0f);
    for (std::int64_t b = 0; b < t.n_blocks; ++b) {
      __builtin_prefetch(scales + tail_ahead, 0, 2);
      I block_sum[R];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) block_sum[r] = V::set_int(0);
#pragma GCC unroll 1
      for (int j = 0; j < 8; ++j) {
        prefetch<T::record_bytes() / 8>(record + T::record_bytes() / 8 * j + ahead);
        I w[8];
        unpack_codes<V, T, kUp>(record + 4 * t.lane, j, w);
        const std::uint8_t* scale = record + T::kPacking.scales_at() + 32 * j + t.lane;
        add_scaled_products<V, 63, 4, true>(w, x, 32 * j, V::load_s8(scale), block_sum);
        add_scaled_products<V, 63, 4, true>(w + 4, x, 32 * j + 16, V::load_s8(scale + 16),
                                            block_sum);
      }
      F d = V::load_half(scales);
      if constexpr (kUp > 0) d = V::mul(d, V::set(1.0f / (1 << kUp)));
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
        sum[r] = V::fma(V::mul(V::to_float(block_sum[r]), d), V::set(x[r].scale), sum[r]);
      record += T::record_bytes();
      scales += T::tail_bytes();
      x += t.x_stride;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) store_outputs<V>(sum[r], t.bias, t.y + r * t.y_stride, t.lanes);
  }
};

// Float weights of T::load<V>(record).
template <class T>
struct FloatTile {
  template <class V, int R>
  static void tile(const Tile& t) {
    using F = typename V::F;
    const std::uint8_t* record = t.records + T::record_bytes() / kPackRows * t.lane;
    const auto* x = static_cast<const float*>(t.x);
    const std::size_t ahead = t.ahead;
    F sum[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sum[r] = V::set(0.0f);
    for (std::int64_t k = 0; k < t.n_blocks; ++k) {
      __builtin_prefetch(record + ahead, 0, 2);
      const F w = T::template load<V>(record);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) sum[r] = V::fma(w, V::set(x[r * t.x_stride + k]), sum[r]);
      record += T::record_bytes();
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) store_outputs<V>(sum[r], t.bias, t.y + r * t.y_stride, t.lanes);
  }
};

}  // namespace
}  // namespace foretoken::kernels
