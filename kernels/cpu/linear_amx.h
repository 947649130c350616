// Many rows at once, on AMX's tiles, for isa/linear.cpp: the same integer sums, and then the same
// float operations in the same order, as the reference. Few rows go to the VNNI kernels, which give
// the same bits.
//
// vtdpb* multiplies a tile of 16 rows by 64 activations with one of 64 by 16 weights, a lane vector
// a row, in the time in which VNNI does an eighth of that. What it cannot do is scale one half of
// its products: the sub-blocks of a block of 256 have scales of their own. So scales are multiplied
// into the codes first, and the products, too wide for a byte, are cut into two planes:
//
//   Q4_K, Q5_K   code * (scale % 8), code * (scale / 8): at most 31 * 7 = 217, and their sum is
//                lo + 8 hi. Unsigned.
//   Q6_K, Q3_K   p = (code - 32) * scale, |p| <= 32 * 128: p = lo + 128 hi, lo in [0, 128),
//                hi in [-32, 32]. Signed.
//
// Sums of a plane stay below 256 * 217 * 127 < 2^23, and lo + factor * hi is the reference's sum of
// scaled products, exactly. A block then takes 8 tile products for 16 rows and 16 outputs, whatever
// its sub-blocks, and one conversion to float a row and output.
//
// Order: block by block, so that the planes of a block stay in the first-level cache (8 KiB) while
// all rows pass over them; a row's sums wait there meanwhile (64 bytes a row).
#pragma once

#include "kernels/cpu/amx_tiles.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/weight_types.h"

namespace foretoken::kernels {
namespace {

using I = __m512i;
using F = __m512;
using B = Simd;

// Below this many rows the planes cost more than they save: they are 170 to 480 cycles a block and
// group, VNNI's products about 50 a row. linear_bench.
constexpr std::int64_t kLeastRows = 10;
// The most rows that pass over the planes of a block before the next. Their sums are 8 KiB of the
// first-level cache, beside 8 KiB of planes and 8 KiB of products.
constexpr std::int64_t kChunkRows = 128;
constexpr int kTileRows = 16;
static_assert(kActivationTile == kTileRows);

// Of one block of 256 and one group: lane vectors 0..63 of two planes.
struct alignas(64) Planes {
  std::uint8_t low[64 * 64], high[64 * 64];
};
// What turns a row's sums into floats.
struct BlockFactors {
  F d, minus_dmin;
  I minimums[4];  // in the pairing of Record256::pair_sum
};

template <class T>
FORETOKEN_INLINE void unpack_min_k(const std::uint8_t* record, Planes& planes, BlockFactors& f) {
  constexpr Packing p = T::kPacking;
#pragma GCC unroll 1
  for (int j = 0; j < 8; ++j) {
    I w[8];
    unpack_codes<B, T>(record, j, w);
    const I scale = B::load_u8(record + p.scales_at() + 16 * j);
    const I both = _mm512_or_si512(scale, _mm512_slli_epi32(scale, 16));
    const I low = _mm512_and_si512(both, _mm512_set1_epi16(7)), high = _mm512_srli_epi16(both, 3);
    // A word's two codes at once: neither product leaves its byte.
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      _mm512_store_si512(planes.low + 512 * j + 64 * i, _mm512_mullo_epi16(w[i], low));
      _mm512_store_si512(planes.high + 512 * j + 64 * i, _mm512_mullo_epi16(w[i], high));
    }
  }
  f.d = B::load_half(record + p.d_at());
  f.minus_dmin = B::negate(B::load_half(record + p.m_at()));
  const I first = B::load_int(record + p.mins_at()),
          second = B::load_int(record + p.mins_at() + 64);
  const I mask = B::set_word(0xff);
  f.minimums[0] = B::bit_and(first, mask), f.minimums[1] = B::shift_words_right<8>(first);
  f.minimums[2] = B::bit_and(second, mask), f.minimums[3] = B::shift_words_right<8>(second);
}

template <class T>
FORETOKEN_INLINE void unpack_signed_k(const std::uint8_t* record, const std::uint8_t* tail,
                                      Planes& planes, BlockFactors& f) {
  constexpr int kUp = 6 - T::kPacking.code_bits();
  const I even_bytes = B::set_word(0xff);
#pragma GCC unroll 1
  for (int j = 0; j < 8; ++j) {
    I w[8];
    unpack_codes<B, T, kUp>(record, j, w);
    const std::uint8_t* scales = record + T::kPacking.scales_at() + 32 * j;
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const I wide = B::load_s8(scales + 16 * half);
      const I scale = B::or_masked(_mm512_slli_epi32(wide, 16), wide, _mm512_set1_epi32(0xffff));
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const I code = _mm512_sub_epi8(w[4 * half + i], B::set_byte(32));
        const I even = _mm512_mullo_epi16(_mm512_srai_epi16(_mm512_slli_epi16(code, 8), 8), scale);
        const I odd = _mm512_mullo_epi16(_mm512_srai_epi16(code, 8), scale);
        const I low = _mm512_ternarylogic_epi32(even_bytes, even, _mm512_slli_epi16(odd, 8), 0xca);
        const I high = _mm512_ternarylogic_epi32(even_bytes, _mm512_srai_epi16(even, 7),
                                                 _mm512_slli_epi16(odd, 1), 0xca);
        const int at = 512 * j + 256 * half + 64 * i;
        _mm512_store_si512(planes.low + at, B::bit_and(low, B::set_byte(127)));
        _mm512_store_si512(planes.high + at, high);
      }
    }
  }
  f.d = B::load_half(tail);
  if constexpr (kUp > 0) f.d = B::mul(f.d, B::set(1.0f / (1 << kUp)));
}

// One row of one group: its sum so far plus the block's part, from the two planes' sums.
template <class T>
FORETOKEN_INLINE void add_row(const std::int32_t* low, const std::int32_t* high, const Record256& x,
                              const BlockFactors& f, float* sums) {
  const I sum = B::add_int(_mm512_slli_epi32(_mm512_load_si512(high), T::kPacking.minimums ? 3 : 7),
                           _mm512_load_si512(low));
  F total;
  if constexpr (T::kPacking.minimums) {
    const std::int16_t* pair = x.pair_sum;
    I s = B::add_word_products(B::set_int(0), f.minimums[0], broadcast4(pair));
    s = B::add_word_products(s, f.minimums[1], broadcast4(pair + 2));
    s = B::add_word_products(s, f.minimums[2], broadcast4(pair + 4));
    s = B::add_word_products(s, f.minimums[3], broadcast4(pair + 6));
    total = B::fma(B::to_float(sum), f.d, B::mul(B::to_float(s), f.minus_dmin));
  } else {
    total = B::mul(B::to_float(sum), f.d);
  }
  B::store(sums, B::fma(total, B::set(x.scale), B::load(sums)));
}

// One pass: rows [first_row, last_row), at most kChunkRows, blocks [first_block, last_block).
struct Pass {
  std::int64_t first_row, last_row, first_block, last_block;
};

// One group. Sums of earlier blocks are found in y, and left there for later ones.
template <class T>
void group_on_tiles(const LinearTask& task, std::int64_t g, const Pass& pass) {
  const PackedMatrix& w = task.w;
  const Activations::Impl& x = *task.x;
  constexpr std::size_t kRecord = T::record_bytes();
  const std::size_t group_size = group_bytes_of<T>(w.n_in, 256);
  const auto* group =
      reinterpret_cast<const std::uint8_t*>(w.data) + static_cast<std::size_t>(g) * group_size;
  const std::int64_t first_output = g * kPackRows;
  const int lanes =
      static_cast<int>(w.n_out - first_output < kPackRows ? w.n_out - first_output : kPackRows);
  float* y = task.y + pass.first_row * task.y_stride + first_output;
  alignas(64) float sums[kChunkRows][16];
  const auto n_rows = static_cast<int>(pass.last_row - pass.first_row);
  const auto mask = static_cast<__mmask16>((1u << lanes) - 1);
  for (int r = 0; r < n_rows; ++r)
    B::store(sums[r], pass.first_block > 0 ? _mm512_maskz_loadu_ps(mask, y + r * task.y_stride)
                                           : B::set(0.0f));
  Planes planes;
  BlockFactors factors;
  alignas(64) std::int32_t low[kTileRows][16], high[kTileRows][16];
  // The next record is fetched while the tiles are at work, so many bytes a tile.
  const int n_tiles = (n_rows + kTileRows - 1) / kTileRows;
  const std::size_t fetch = (kRecord / static_cast<std::size_t>(n_tiles) + 63) / 64 * 64;
  for (std::int64_t b = pass.first_block; b < pass.last_block; ++b) {
    const std::uint8_t* record = group + static_cast<std::size_t>(b) * kRecord;
    if constexpr (T::kPacking.minimums) {
      unpack_min_k<T>(record, planes, factors);
    } else {
      unpack_signed_k<T>(record,
                         group + static_cast<std::size_t>(w.n_in / 256) * T::record_bytes() +
                             static_cast<std::size_t>(b) * T::tail_bytes(),
                         planes, factors);
    }
    // After the last block comes the first of the next group.
    const std::uint8_t* next =
        b + 1 < pass.last_block
            ? record + kRecord
            : group + group_size + static_cast<std::size_t>(pass.first_block) * kRecord;
    std::size_t fetched = 0;
    for (int first = 0; first < n_rows; first += kTileRows) {
      const std::int64_t left = x.n_rows - (pass.first_row + first);
      const int width = static_cast<int>(left < kTileRows ? left : kTileRows);
      const Record256* records = x.tile256(pass.first_row + first) + b * width;
      for (std::size_t end = fetched + fetch; fetched < end && fetched < kRecord; fetched += 64)
        __builtin_prefetch(next + fetched);
      // Fewer rows than a tile has: the rest are other blocks' records, or the buffer's padding,
      // and their sums are dropped.
      _tile_zero(0);
      _tile_zero(1);
#pragma GCC unroll 4
      for (int quarter = 0; quarter < 4; ++quarter) {
        _tile_loadd(2, records->q + 64 * quarter, sizeof(Record256));
        _tile_loadd(3, planes.low + 1024 * quarter, 64);
        _tile_loadd(4, planes.high + 1024 * quarter, 64);
        if constexpr (T::kPacking.minimums) {  // unsigned planes
          _tile_dpbsud(0, 2, 3);
          _tile_dpbsud(1, 2, 4);
        } else {
          _tile_dpbssd(0, 2, 3);
          _tile_dpbssd(1, 2, 4);
        }
      }
      _tile_stored(0, low, 64);
      _tile_stored(1, high, 64);
      for (int r = 0; r < width; ++r)
        add_row<T>(low[r], high[r], records[r], factors, sums[first + r]);
    }
  }
  const float* bias =
      pass.last_block == w.n_in / 256 && task.bias != nullptr ? task.bias + first_output : nullptr;
  for (int r = 0; r < n_rows; ++r)
    store_outputs<B>(B::load(sums[r]), bias, y + r * task.y_stride, lanes);
}

template <class T>
void groups_on_tiles(const LinearTask& task, std::int64_t first_group, std::int64_t last_group) {
  configure_tiles(TileConfig{});
  // As many blocks a pass as keep their records in the second-level cache for all groups.
  constexpr std::int64_t kBlocks =
      kResidentActivationBytes / (kChunkRows * static_cast<std::int64_t>(sizeof(Record256)));
  const std::int64_t n_blocks = task.w.n_in / 256, n_rows = task.x->n_rows;
  const std::int64_t n_passes = (n_blocks + kBlocks - 1) / kBlocks;
  for (std::int64_t row = 0; row < n_rows; row += kChunkRows)
    for (std::int64_t p = 0; p < n_passes; ++p) {
      const Pass pass{row, row + kChunkRows < n_rows ? row + kChunkRows : n_rows,
                      n_blocks * p / n_passes, n_blocks * (p + 1) / n_passes};
      for (std::int64_t g = first_group; g < last_group; ++g) group_on_tiles<T>(task, g, pass);
    }
  _tile_release();  // so that the next switch of threads need not save 8 KiB
}

template <class T, ActivationForm kForm>
void groups_of(const LinearTask& task, std::int64_t first_group, std::int64_t last_group) {
  if constexpr (requires { T::kAmx; }) {
    if (task.x->n_rows >= kLeastRows) return groups_on_tiles<T>(task, first_group, last_group);
  }
  avx512_vnni::kLinear[static_cast<std::size_t>(task.w.type)](task, first_group, last_group);
}

}  // namespace
}  // namespace foretoken::kernels
