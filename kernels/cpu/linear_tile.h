// The vector linear kernels, generic over an instruction set's traits V (linear_avx2.cpp,
// linear_avx512.cpp, linear_avx512_vnni.cpp). The same integer sums and float operations, in the
// same order, as linear_scalar.cpp: a vector lane is one output, so no sum ever crosses lanes, and
// a row's operations do not depend on how many rows share the tile.
//
// Each block's weights are unpacked once for all R rows of a tile; a row then costs one
// multiply-add instruction per four values and lane, its activation dword broadcast from memory.
//
// V::kRows, the rows of a tile: registers hold 8 unpacked lane vectors, and per row one accumulator
// and, for blocks of 256, one sum of the block. AVX-512: 8 + 2 * 8 + 5 temporaries = 29 of 32.
// AVX2: 8 + 4 + 4 = 16 of 16 for blocks of 32; blocks of 256 spill their sums, and still four rows
// beat two by 1.2 at eight rows.
#pragma once

#include "file_blocks.h"
#include "linear_functions.h"
#include "packed_layout.h"

namespace foretoken::kernels {
namespace {

#define FORETOKEN_INLINE [[gnu::always_inline]] static inline
#define FORETOKEN_LAMBDA_INLINE __attribute__((always_inline))

// fn<first, count>() over [0, N) in groups of at most G.
template <int N, int G, int First = 0, class Fn>
FORETOKEN_INLINE void in_groups(Fn&& fn) {
  if constexpr (First < N) {
    fn.template operator()<First, (N - First < G ? N - First : G)>();
    in_groups<N, G, First + G>(fn);
  }
}

constexpr bool has_fifth_bits(WeightType t) {
  return t == WeightType::kQ5_0 || t == WeightType::kQ5_1 || t == WeightType::kQ5_K;
}
constexpr bool has_minimum(WeightType t) {  // of the types with blocks of 32
  return t == WeightType::kQ4_1 || t == WeightType::kQ5_1;
}

// Sums of G rows over one block of 32. V::dot<largest code, n, G> adds n lane vectors' products to
// each row's sum; x of row g is at x + g * stride bytes.
template <class V, WeightType T, int G>
FORETOKEN_INLINE void block_dots(const typename V::I (&w)[8], const Record32* x,
                                 typename V::I (&sum)[G]) {
  constexpr bool kBytes = T == WeightType::kQ8_0 || T == WeightType::kIQ4_NL;
  constexpr int kMax = kBytes ? 255 : has_fifth_bits(T) ? 31 : 15;
#pragma GCC unroll 16
  for (int g = 0; g < G; ++g) {
    if constexpr (kBytes) {
      sum[g] = V::initial_q8(x[g]);
    } else if constexpr (T == WeightType::kQ4_0) {
      sum[g] = V::broadcast(&x[g].minus8_sum);
    } else if constexpr (T == WeightType::kQ5_0) {
      sum[g] = V::template shift_left<1>(V::broadcast(&x[g].minus8_sum));
    } else {
      sum[g] = V::zero_int();
    }
  }
  V::template dot<kMax, 8, G>(sum, w, x[0].q, static_cast<int>(sizeof(Record32)));
}

template <class V>
FORETOKEN_INLINE void unpack_nibbles(const std::uint8_t* plane, typename V::I (&w)[8]) {
  const typename V::I mask = V::splat_byte(15);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const typename V::I packed = V::load(plane + 64 * i);
    w[i] = V::bit_and(packed, mask);
    w[i + 4] = V::bit_and(V::template shift_right<4>(packed), mask);
  }
}

// Moves bit field `From` of every byte to bit `To`; neighbours' bits that come along are masked
// off.
template <class V, int From, int To>
FORETOKEN_INLINE typename V::I move_bits(typename V::I v) {
  if constexpr (From > To) {
    return V::template shift_right<From - To>(v);
  } else if constexpr (From < To) {
    return V::template shift_left<To - From>(v);
  } else {
    return v;
  }
}

// A plane of bits to bit `To` of eight lane vectors.
template <class V, int To>
FORETOKEN_INLINE void add_bits(typename V::I bits, typename V::I (&w)[8]) {
  const typename V::I mask = V::splat_byte(1 << To);
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
  const typename V::I mask = V::splat_byte(3 << To);
  w[0] = V::or_masked(w[0], move_bits<V, 0, To>(pairs), mask);
  w[1] = V::or_masked(w[1], move_bits<V, 2, To>(pairs), mask);
  w[2] = V::or_masked(w[2], move_bits<V, 4, To>(pairs), mask);
  w[3] = V::or_masked(w[3], move_bits<V, 6, To>(pairs), mask);
}

// Adds the bias and stores row r's lanes; `lanes` of the 16 outputs exist.
template <class V>
FORETOKEN_INLINE void store_outputs(typename V::F sum, const float* bias, float* y, int lanes) {
  if (lanes >= V::kLanes) {
    if (bias != nullptr) sum = V::add(sum, V::load_float(bias));
    V::store_float(y, sum);
    return;
  }
  float lane[V::kLanes];
  V::store_float(lane, sum);
  for (int i = 0; i < lanes; ++i) y[i] = bias != nullptr ? lane[i] + bias[i] : lane[i];
}

// How far ahead of its use the first tile over a group fetches weights, into the second-level
// cache. The hardware's own prefetcher starts anew at every page and falls behind when several rows
// lengthen the loop. A core that reads 14 GB/s with 150 ns of latency has 2.1 KB in flight; 3 KB
// leaves room. Not 4 KB: what is fetched would share its cache set with what is read. Measured on
// Granite Rapids with Q4_K, share of the read bandwidth at one and four rows: none 84 and 50 %, 4
// KB into the first level 85 and 69 %, 3 KB into the second 96 and 75 %.
constexpr std::size_t kPrefetchBytes = 3072;

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
  int lanes;      // outputs that exist from the first lane on
  int lane;       // 0, or 8 for the upper half where V has 8 lanes
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

template <class V, WeightType T, int R>
void tile_block32(const Tile& t) {
  using F = typename V::F;
  using I = typename V::I;
  const std::uint8_t* record = t.records + 4 * t.lane;
  const std::uint8_t* scales = t.tail + 2 * t.lane;
  const auto* x = static_cast<const Record32*>(t.x);
  [[maybe_unused]] const I values = V::byte_table(kIq4Values);
  const std::size_t ahead = t.ahead;
  [[maybe_unused]] const std::size_t tail_ahead = t.tail_ahead;
  F sum[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) sum[r] = V::zero();
  for (std::int64_t b = 0; b < t.n_blocks; ++b) {
    prefetch<record_bytes(T)>(record + ahead);
    if constexpr (tail_bytes(T) > 0) __builtin_prefetch(scales + tail_ahead, 0, 2);
    I w[8];
    if constexpr (T == WeightType::kQ8_0) {
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) w[j] = V::load_q8(record + 64 * j);
    } else {
      unpack_nibbles<V>(record, w);
    }
    if constexpr (T == WeightType::kIQ4_NL) {
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) w[j] = V::look_up(values, w[j]);
    }
    if constexpr (has_fifth_bits(T)) add_bits<V, 4>(V::load(record + 256), w);
    F d, m;
    if constexpr (has_minimum(T)) {
      const std::uint8_t* halves = record - 2 * t.lane + record_bytes(T) - 64;
      d = V::load_half(halves);
      m = V::load_half(halves + 32);
    } else {
      d = V::load_half(scales);
    }
    in_groups<R, V::kDotRows>([&]<int kFirst, int kCount>() FORETOKEN_LAMBDA_INLINE {
      I dot[kCount];
      block_dots<V, T, kCount>(w, x + kFirst, dot);
#pragma GCC unroll 16
      for (int g = 0; g < kCount; ++g) {
        const int r = kFirst + g;
        sum[r] = V::fma(V::to_float(dot[g]), V::mul(d, V::broadcast(&x[r].scale)), sum[r]);
        if constexpr (has_minimum(T)) sum[r] = V::fma(m, V::broadcast(&x[r].scaled_sum), sum[r]);
      }
    });
    record += record_bytes(T);
    scales += tail_bytes(T);
    x += t.x_stride;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) store_outputs<V>(sum[r], t.bias, t.y + r * t.y_stride, t.lanes);
}

// sum[r] += scale * (products of N lane vectors with row r's values from `first` on), codes at most
// kMax. kOffset: codes are 32 too high, which is taken out through the sums of each 16 values.
template <class V, int kMax, int N, bool kOffset, int R>
FORETOKEN_INLINE void add_products(const typename V::I* w, const Record256* x, int first,
                                   typename V::I scale, typename V::I (&sum)[R]) {
  in_groups<R, V::kDotRows>([&]<int kFirst, int kCount>() FORETOKEN_LAMBDA_INLINE {
    V::template add_scaled_dot<kMax, N, kCount, kOffset>(sum + kFirst, w, x + kFirst, first, scale);
  });
}

// Q4_K, Q5_K.
template <class V, WeightType T, int R>
void tile_min_k(const Tile& t) {
  using F = typename V::F;
  using I = typename V::I;
  const std::uint8_t* record = t.records;
  const auto* x = static_cast<const Record256*>(t.x);
  const std::size_t ahead = t.ahead;
  F sum[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) sum[r] = V::zero();
  for (std::int64_t b = 0; b < t.n_blocks; ++b) {
    // The integer sum of the block as a float.
    F block_sum[R];
    const auto unpack = [&](int j, I(&w)[8]) FORETOKEN_LAMBDA_INLINE {
      prefetch<record_bytes(T) / 8>(record + record_bytes(T) / 8 * j + ahead);
      unpack_nibbles<V>(record + 256 * j + 4 * t.lane, w);
      if constexpr (T == WeightType::kQ5_K)
        add_bits<V, 4>(V::load(record + kQ5KFifths + 64 * j + 4 * t.lane), w);
      return V::load_u8(record + k_scales(T) + 16 * j + t.lane);
    };
    if constexpr (V::kFloatSums && T == WeightType::kQ4_K) {
      // Where a product of integers takes two instructions: four sub-blocks' sum is at most
      // 4 * 32 * 15 * 127 * 63 < 2^24, so floats hold it exactly, and the sum of two such is
      // rounded once, as an integer that is made a float is.
#pragma GCC unroll 1
      for (int half = 0; half < 2; ++half) {
        F part[R];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) part[r] = V::zero();
#pragma GCC unroll 1
        for (int j = 4 * half; j < 4 * half + 4; ++j) {
          I w[8];
          const F scale = V::to_float(unpack(j, w));
          in_groups<R, V::kDotRows>([&]<int kFirst, int kCount>() FORETOKEN_LAMBDA_INLINE {
            V::template add_float_dot<15, 8, kCount>(part + kFirst, w, x + kFirst, 32 * j, scale);
          });
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
          block_sum[r] = half == 0 ? part[r] : V::add(block_sum[r], part[r]);
      }
    } else {
      I whole[R];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) whole[r] = V::zero_int();
#pragma GCC unroll 1
      for (int j = 0; j < 8; ++j) {
        I w[8];
        const I scale = unpack(j, w);
        add_products<V, has_fifth_bits(T) ? 31 : 15, 8, false>(w, x, 32 * j, scale, whole);
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) block_sum[r] = V::to_float(whole[r]);
    }
    const F d = V::load_half(record + k_d(T) + 2 * t.lane);
    const F minus_dmin = V::negate(V::load_half(record + k_dmin(T) + 2 * t.lane));
    const I low = V::load(record + k_mins(T) + 4 * t.lane);
    const I high = V::load(record + k_mins(T) + 64 + 4 * t.lane);
    const I mask = V::splat_word(0xff);
    const I m02 = V::bit_and(low, mask), m13 = V::template shift_right<8>(low);
    const I m46 = V::bit_and(high, mask), m57 = V::template shift_right<8>(high);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const std::int16_t* pair = x[r].pair_sum;
      I s = V::dot_words(V::zero_int(), m02, V::broadcast_pair(pair));
      s = V::dot_words(s, m13, V::broadcast_pair(pair + 2));
      s = V::dot_words(s, m46, V::broadcast_pair(pair + 4));
      s = V::dot_words(s, m57, V::broadcast_pair(pair + 6));
      const F total = V::fma(block_sum[r], d, V::mul(V::to_float(s), minus_dmin));
      sum[r] = V::fma(total, V::broadcast(&x[r].scale), sum[r]);
    }
    record += record_bytes(T);
    x += t.x_stride;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) store_outputs<V>(sum[r], t.bias, t.y + r * t.y_stride, t.lanes);
}

template <class V, WeightType T, int R>
void tile_q2_k(const Tile& t) {
  using F = typename V::F;
  using I = typename V::I;
  const std::uint8_t* record = t.records;
  const auto* x = static_cast<const Record256*>(t.x);
  const std::size_t ahead = t.ahead;
  F sum[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) sum[r] = V::zero();
  for (std::int64_t b = 0; b < t.n_blocks; ++b) {
    const std::uint8_t* nibbles = record + kQ2KScales + 4 * t.lane;
    I block_sum[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) block_sum[r] = V::zero_int();
#pragma GCC unroll 1
    for (int j = 0; j < 8; ++j) {
      prefetch<record_bytes(T) / 8>(record + record_bytes(T) / 8 * j + ahead);
      I w[8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) w[i] = V::zero_int();
      const std::uint8_t* pairs = record + 128 * j + 4 * t.lane;
      add_pairs<V, 0>(V::load(pairs), w);
      add_pairs<V, 0>(V::load(pairs + 64), w + 4);
      const I four = V::shift_right_by(V::load(nibbles + 64 * (j / 2)), 16 * (j & 1));
      add_products<V, 3, 4, false>(w, x, 32 * j, V::template field<0, 15>(four), block_sum);
      add_products<V, 3, 4, false>(w + 4, x, 32 * j + 16, V::template field<8, 15>(four),
                                   block_sum);
    }
    I min_sum[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) min_sum[r] = V::zero_int();
#pragma GCC unroll 1
    for (int v = 0; v < 4; ++v) {
      const I four = V::load(nibbles + 64 * v);
      const I m[4] = {V::template field<4, 15>(four), V::template field<12, 15>(four),
                      V::template field<20, 15>(four), V::template field<28, 15>(four)};
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k)
          min_sum[r] = V::add_int(
              min_sum[r], V::multiply_int(m[k], V::broadcast(&x[r].minus32_sum[4 * v + k])));
      }
    }
    const F d = V::load_half(record + kQ2KD + 2 * t.lane);
    // Activations carry -32 times their sums.
    const F dmin = V::mul(V::load_half(record + kQ2KDmin + 2 * t.lane), V::splat(0.03125f));
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const F total = V::fma(V::to_float(block_sum[r]), d, V::mul(V::to_float(min_sum[r]), dmin));
      sum[r] = V::fma(total, V::broadcast(&x[r].scale), sum[r]);
    }
    record += record_bytes(T);
    x += t.x_stride;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) store_outputs<V>(sum[r], t.bias, t.y + r * t.y_stride, t.lanes);
}

// Codes of 32 values j of a block of Q6_K, or of Q3_K as if its three bits were the upper ones of
// six.
template <class V, WeightType T>
FORETOKEN_INLINE void unpack_signed_codes(const std::uint8_t* record, int j,
                                          typename V::I (&w)[8]) {
  constexpr bool kThree = T == WeightType::kQ3_K;
  if constexpr (kThree) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) w[i] = V::zero_int();
    add_bits<V, 5>(V::load(record + kQ3KThirds + 64 * j), w);
  } else {
    unpack_nibbles<V>(record + 256 * j, w);
  }
  constexpr int kTo = kThree ? 3 : 4;
  const std::uint8_t* pairs = record + (kThree ? 0 : kQ6KPairs) + 128 * j;
  add_pairs<V, kTo>(V::load(pairs), w);
  add_pairs<V, kTo>(V::load(pairs + 64), w + 4);
}

// Q6_K, and Q3_K as if its three bits were the upper ones of six: 8 code - 32, an eighth of d.
template <class V, WeightType T, int R>
void tile_signed_k(const Tile& t) {
  using F = typename V::F;
  using I = typename V::I;
  const std::uint8_t* record = t.records;
  const std::uint8_t* scales = t.tail + 2 * t.lane;
  constexpr bool kThree = T == WeightType::kQ3_K;
  constexpr std::size_t kScales = kThree ? kQ3KScales : kQ6KScales;
  const auto* x = static_cast<const Record256*>(t.x);
  const std::size_t ahead = t.ahead, tail_ahead = t.tail_ahead;
  F sum[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) sum[r] = V::zero();
  for (std::int64_t b = 0; b < t.n_blocks; ++b) {
    __builtin_prefetch(scales + tail_ahead, 0, 2);
    I block_sum[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) block_sum[r] = V::zero_int();
#pragma GCC unroll 1
    for (int j = 0; j < 8; ++j) {
      prefetch<record_bytes(T) / 8>(record + record_bytes(T) / 8 * j + ahead);
      I w[8];
      unpack_signed_codes<V, T>(record + 4 * t.lane, j, w);
      const std::uint8_t* scale = record + kScales + 32 * j + t.lane;
      add_products<V, 63, 4, true>(w, x, 32 * j, V::load_s8(scale), block_sum);
      add_products<V, 63, 4, true>(w + 4, x, 32 * j + 16, V::load_s8(scale + 16), block_sum);
    }
    F d = V::load_half(scales);
    if constexpr (kThree) d = V::mul(d, V::splat(0.125f));
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
      sum[r] = V::fma(V::mul(V::to_float(block_sum[r]), d), V::broadcast(&x[r].scale), sum[r]);
    record += record_bytes(T);
    scales += tail_bytes(T);
    x += t.x_stride;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) store_outputs<V>(sum[r], t.bias, t.y + r * t.y_stride, t.lanes);
}

template <class V, WeightType T, int R>
void tile_float(const Tile& t) {
  using F = typename V::F;
  constexpr int kBytes = static_cast<int>(record_bytes(T)) / kPackRows;
  const std::uint8_t* record = t.records + kBytes * t.lane;
  const auto* x = static_cast<const float*>(t.x);
  const std::size_t ahead = t.ahead;
  F sum[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) sum[r] = V::zero();
  for (std::int64_t k = 0; k < t.n_blocks; ++k) {
    __builtin_prefetch(record + ahead, 0, 2);
    F w;
    if constexpr (T == WeightType::kF32) w = V::load_float(reinterpret_cast<const float*>(record));
    if constexpr (T == WeightType::kF16) w = V::load_half(record);
    if constexpr (T == WeightType::kBF16) w = V::load_bfloat(record);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sum[r] = V::fma(w, V::broadcast(x + r * t.x_stride + k), sum[r]);
    record += record_bytes(T);
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) store_outputs<V>(sum[r], t.bias, t.y + r * t.y_stride, t.lanes);
}

template <class V, WeightType T, int R>
FORETOKEN_INLINE void tile(const Tile& t) {
  if constexpr (T == WeightType::kQ4_K || T == WeightType::kQ5_K) {
    tile_min_k<V, T, R>(t);
  } else if constexpr (T == WeightType::kQ2_K) {
    tile_q2_k<V, T, R>(t);
  } else if constexpr (T == WeightType::kQ3_K || T == WeightType::kQ6_K) {
    tile_signed_k<V, T, R>(t);
  } else if constexpr (record_bytes(T) <= 64) {
    tile_float<V, T, R>(t);
  } else {
    tile_block32<V, T, R>(t);
  }
}

template <class V, WeightType T>
void tile_of(int rows, const Tile& t) {
  static_assert(V::kRows <= 8);
  switch (rows) {
    case 1:
      return tile<V, T, 1>(t);
    case 2:
      return tile<V, T, 2>(t);
    case 3:
      if constexpr (V::kRows >= 3) return tile<V, T, 3>(t);
      break;
    case 4:
      if constexpr (V::kRows >= 4) return tile<V, T, 4>(t);
      break;
    case 5:
      if constexpr (V::kRows >= 5) return tile<V, T, 5>(t);
      break;
    case 6:
      if constexpr (V::kRows >= 6) return tile<V, T, 6>(t);
      break;
    case 7:
      if constexpr (V::kRows >= 7) return tile<V, T, 7>(t);
      break;
    case 8:
      if constexpr (V::kRows >= 8) return tile<V, T, 8>(t);
      break;
  }
  __builtin_trap();
}

// Activations that stay in the second-level cache while every group of the range passes over them:
// half of 2 MiB, a core's share on current servers (1 MiB on older ones).
constexpr std::int64_t kResidentActivationBytes = 1 << 20;

template <class V, WeightType T>
void groups_of(const LinearTask& task, std::int64_t first_group, std::int64_t last_group) {
  const PackedMatrix& w = task.w;
  const Activations::Impl& x = *task.x;
  constexpr bool kFloat = record_bytes(T) <= 64;
  constexpr bool k256 = record_bytes(T) > 512;
  const std::int64_t row_bytes = kFloat ? w.n_in * 4
                                 : k256
                                     ? w.n_in / 256 * static_cast<std::int64_t>(sizeof(Record256))
                                     : w.n_in / 32 * static_cast<std::int64_t>(sizeof(Record32));
  std::int64_t chunk = kResidentActivationBytes / row_bytes / kActivationTile * kActivationTile;
  if (chunk < kActivationTile) chunk = kActivationTile;
  for (std::int64_t chunk_row = 0; chunk_row < x.n_rows; chunk_row += chunk) {
    const std::int64_t chunk_end = chunk_row + chunk < x.n_rows ? chunk_row + chunk : x.n_rows;
    for (std::int64_t g = first_group; g < last_group; ++g) {
      Tile t;
      t.records = reinterpret_cast<const std::uint8_t*>(w.data) +
                  static_cast<std::size_t>(g) * group_bytes(T, w.n_in);
      t.tail = t.records + tail_offset(T, w.n_in);
      t.n_blocks = kFloat ? w.n_in : k256 ? w.n_in / 256 : w.n_in / 32;
      t.y_stride = task.y_stride;
      for (std::int64_t row = chunk_row; row < chunk_end; row += kActivationTile) {
        const int width =
            static_cast<int>(x.n_rows - row < kActivationTile ? x.n_rows - row : kActivationTile);
        for (int sub = 0; sub < width; sub += V::kRows) {
          const int rows = width - sub < V::kRows ? width - sub : V::kRows;
          if constexpr (kFloat) {
            t.x = x.x + (row + sub) * x.stride;
            t.x_stride = x.stride;
          } else if constexpr (k256) {
            t.x = x.tile256(row) + sub;
            t.x_stride = width;
          } else {
            t.x = x.tile32(row) + sub;
            t.x_stride = width;
          }
          const bool first = row == chunk_row && sub == 0;
          t.ahead = first ? kPrefetchBytes : 0;
          t.tail_ahead = first ? group_bytes(T, w.n_in) : 0;
          for (t.lane = 0; t.lane < kPackRows; t.lane += V::kLanes) {
            const std::int64_t o = g * kPackRows + t.lane;
            if (o >= w.n_out) break;
            t.lanes = static_cast<int>(w.n_out - o < V::kLanes ? w.n_out - o : V::kLanes);
            t.bias = task.bias != nullptr ? task.bias + o : nullptr;
            t.y = task.y + (row + sub) * task.y_stride + o;
            tile_of<V, T>(rows, t);
          }
        }
      }
    }
  }
}

template <class V>
FORETOKEN_INLINE void groups_of_type(const LinearTask& task, std::int64_t first,
                                     std::int64_t last) {
  switch (task.w.type) {
    case WeightType::kF32:
      return groups_of<V, WeightType::kF32>(task, first, last);
    case WeightType::kF16:
      return groups_of<V, WeightType::kF16>(task, first, last);
    case WeightType::kBF16:
      return groups_of<V, WeightType::kBF16>(task, first, last);
    case WeightType::kQ8_0:
      return groups_of<V, WeightType::kQ8_0>(task, first, last);
    case WeightType::kQ4_0:
      return groups_of<V, WeightType::kQ4_0>(task, first, last);
    case WeightType::kQ4_1:
      return groups_of<V, WeightType::kQ4_1>(task, first, last);
    case WeightType::kQ5_0:
      return groups_of<V, WeightType::kQ5_0>(task, first, last);
    case WeightType::kQ5_1:
      return groups_of<V, WeightType::kQ5_1>(task, first, last);
    case WeightType::kIQ4_NL:
      return groups_of<V, WeightType::kIQ4_NL>(task, first, last);
    case WeightType::kQ2_K:
      return groups_of<V, WeightType::kQ2_K>(task, first, last);
    case WeightType::kQ3_K:
      return groups_of<V, WeightType::kQ3_K>(task, first, last);
    case WeightType::kQ4_K:
      return groups_of<V, WeightType::kQ4_K>(task, first, last);
    case WeightType::kQ5_K:
      return groups_of<V, WeightType::kQ5_K>(task, first, last);
    case WeightType::kQ6_K:
      return groups_of<V, WeightType::kQ6_K>(task, first, last);
  }
}

}  // namespace
}  // namespace foretoken::kernels
