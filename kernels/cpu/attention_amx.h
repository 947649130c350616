// Attention of every KV mode by AMX's tiles, for isa/attention.cpp.
#pragma once

#include "kernels/cpu/amx_tiles.h"
#include "kernels/cpu/attention_impl.h"

namespace foretoken::kernels {
namespace {

// Keys and values meet many query rows at once, by AMX's tiles.
// 2-bit codes: integer sums of 16 rows, 64 channels (or tokens) and 16 tokens (or digits) an
// instruction. Sums of integers are the same in any order, and what is done with them is what the
// VNNI kernel does: the two give the same bits.
// 16-bit pages: bf16 products, float sums. What is not bf16, a query or a weight, is the sum of
// two, which leaves 2^-17 of it. An instruction adds products of pairs: of K those of two channels,
// which lie side by side; of V those of one token's channels 2j and 2j + 1, of which the weight's
// other half is zero: once for the even channels and once for the odd ones, and no V is moved. A
// row's sums go over channels, and over tokens, in order, whatever rows share the tile; a weight of
// zero adds nothing.
struct AmxVector : Vector {
  static constexpr bool kTileSums = true;

  // Rows are taken in blocks of `size`, at most 16, the last one overlapping the one before:
  // everything is read within its bounds, and twice is the same.
  static int block_size(int rows) {
    const int n_blocks = (rows + 15) / 16;
    return (rows + n_blocks - 1) / n_blocks;
  }
  template <class Fn>
  static FORETOKEN_INLINE void in_blocks(int rows, Fn fn) {  // fn(first row, size)
    const int size = block_size(rows);
    for (int first = 0; first < rows; first += size) {
      if (first > rows - size) first = rows - size;
      fn(first, size);
    }
  }
  static void begin_tiles(int rows) {
    TileConfig config;
    for (int tile = 0; tile < 6; ++tile)  // sums and queries; keys and values have 16
      config.rows[tile] = static_cast<std::uint8_t>(block_size(rows));
    configure_tiles(config);
  }
  static void end_tiles() { _tile_release(); }
  // Four tiles of sums; stored `next` values apart.
  static FORETOKEN_INLINE void zero_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  template <class T>
  static FORETOKEN_INLINE void store_sums(T* at, int next, int row_bytes) {
    _tile_stored(0, at, row_bytes);
    _tile_stored(1, at + next, row_bytes);
    _tile_stored(2, at + 2 * next, row_bytes);
    _tile_stored(3, at + 3 * next, row_bytes);
  }

  // x as a bf16 (a float whose lower half is zero), rounded half away from zero.
  static I round_bf16(F x) {
    return _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(x), set_int(0x8000)),
                            set_int(static_cast<int>(0xffff0000u)));
  }
  struct TwoBf16 {
    I high, low;
  };
  static TwoBf16 two_bf16(F x) {
    const I high = round_bf16(x);
    return {high, round_bf16(subtract(x, _mm512_castsi512_ps(high)))};
  }
  static void split_bf16(const float* x, int n, std::uint16_t* high, std::uint16_t* low) {
    for (int i = 0; i < n; i += 16) {
      const TwoBf16 two = two_bf16(load(x + i));
      const auto to = [](std::uint16_t* p, I v) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                            _mm512_cvtepi32_epi16(_mm512_srli_epi32(v, 16)));
      };
      to(high + i, two.high);
      to(low + i, two.low);
    }
  }

  // Of all 64 tokens of a 16-bit page: those that are not there get whatever lies in their place.
  // q_high, q_low [rows, d]; logits [rows, kLogitStride].
  static void hot_logits_page(const std::byte* page, int d, const std::uint16_t* q_high,
                              const std::uint16_t* q_low, int rows, float* logits) {
    in_blocks(rows, [&](int first, int) {
      zero_sums();
      for (int c = 0; c < d; c += 32) {
        const std::byte* k = page + hot_k_offset(d, 0, c);
        for (const std::uint16_t* q : {q_high, q_low}) {
          _tile_loadd(4, q + first * d + c, d * 2);
          _tile_loadd(6, k, 64);
          _tile_dpbf16ps(0, 4, 6);
          _tile_loadd(7, k + d * 32, 64);
          _tile_dpbf16ps(1, 4, 7);
          _tile_loadd(6, k + d * 64, 64);
          _tile_dpbf16ps(2, 4, 6);
          _tile_loadd(7, k + d * 96, 64);
          _tile_dpbf16ps(3, 4, 7);
        }
      }
      store_sums(logits + first * kLogitStride, 16, kLogitStride * 4);
    });
  }

  // o [rows, d] = weights times V over a segment's 16-bit pages; n_tokens of the segment are there,
  // weights [rows, kLogitStride] of those that are not are 0.
  static void hot_values(const std::byte* const* pages, const bool* is_sealed, int n_tokens, int d,
                         int rows, const float* weights, float* o) {
    // The weights of 16 tokens a tile: as the lower halves of pairs (even channels) and as the
    // upper ones (odd channels), of each the high and the low bf16.
    alignas(64) std::uint32_t tiles[4][4][16][16];
    alignas(64) float sums[4][16][16];
    alignas(64) std::byte last[16][128];
    const int n_pages = (n_tokens + kPageTokens - 1) / kPageTokens;
    in_blocks(rows, [&](int first, int size) {
      for (int c = 0; c < d; c += 64) {
        zero_sums();
        for (int n = 0; n < n_pages; ++n) {
          if (is_sealed[n]) continue;
          const int left = n_tokens - n * kPageTokens;
          const int tokens = left < kPageTokens ? left : kPageTokens;
          for (int t = 0; 16 * t < tokens; ++t) {
            for (int r = 0; r < size; ++r) {
              const TwoBf16 w =
                  two_bf16(load(weights + (first + r) * kLogitStride + n * kPageTokens + 16 * t));
              _mm512_store_si512(tiles[0][t][r], _mm512_srli_epi32(w.high, 16));
              _mm512_store_si512(tiles[1][t][r], w.high);
              _mm512_store_si512(tiles[2][t][r], _mm512_srli_epi32(w.low, 16));
              _mm512_store_si512(tiles[3][t][r], w.low);
            }
          }
          for (int t = 0; 16 * t < tokens; ++t) {
            const std::byte* v = pages[n] + hot_v_offset(d, 16 * t) + c * 2;
            std::int64_t stride = d * 2;
            if (tokens - 16 * t < 16) {  // zeros where there is no token
              std::memset(last, 0, sizeof last);
              for (int i = 0; i < tokens - 16 * t; ++i) std::memcpy(last[i], v + i * stride, 128);
              v = last[0];
              stride = 128;
            }
            _tile_loadd(6, v, stride);
            _tile_loadd(7, v + 64, stride);
            _tile_loadd(4, tiles[0][t], 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, tiles[1][t], 64);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
            _tile_loadd(4, tiles[2][t], 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, tiles[3][t], 64);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
          }
        }
        store_sums(sums[0][0], 16 * 16, 64);
        // Even and odd channels side by side again.
        const I lower = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        const I upper = _mm512_add_epi32(lower, set_int(8));
        for (int r = 0; r < size; ++r) {
          float* to = o + static_cast<std::size_t>(first + r) * d + c;
          FORETOKEN_UNROLL for (int half = 0; half < 2; ++half) {
            const F even = load(sums[half][r]), odd = load(sums[2 + half][r]);
            store(to + 32 * half, _mm512_permutex2var_ps(even, lower, odd));
            store(to + 32 * half + 16, _mm512_permutex2var_ps(even, upper, odd));
          }
        }
      }
    });
  }

  // Four lane vectors of codes, as bytes, from one of 16 codes a lane.
  static void unpack(const std::byte* packed, std::uint8_t* codes) {
    I z = load_int(packed);
    FORETOKEN_UNROLL for (int j = 0; j < 4; ++j) {
      _mm512_store_si512(codes + 64 * j, low_bits<2>(z));
      z = shift_words_right<2>(z);
    }
  }

  // sums [rows, 64]: q [rows, n] times the n K digits of each of a page's 64 tokens. Where n is not
  // a multiple of 64 the codes are filled up with zeros, and up to 48 bytes after q are read for
  // nothing: the unit's other arrays.
  static void logit_sums(const std::byte* page, int n, const std::int8_t* q, int rows,
                         std::int32_t* sums) {
    alignas(64) std::uint8_t codes[(kMaxDigits + 63) / 64][4][1024];  // 64 digits of 16 tokens each
    for (int t = 0; t < 4; ++t) {
      int g = 0;
      for (; g < n / 16; ++g) unpack(page + (t * n + g * 16) * 4, codes[g / 4][t] + 256 * (g % 4));
      for (; g % 4 != 0; ++g) std::memset(codes[g / 4][t] + 256 * (g % 4), 0, 256);
    }
    in_blocks(rows, [&](int first, int) {
      zero_sums();
      for (int c = 0; 64 * c < n; ++c) {
        _tile_loadd(4, q + first * n + 64 * c, n);
        _tile_loadd(6, codes[c][0], 64);
        _tile_dpbsud(0, 4, 6);
        _tile_loadd(7, codes[c][1], 64);
        _tile_dpbsud(1, 4, 7);
        _tile_loadd(6, codes[c][2], 64);
        _tile_dpbsud(2, 4, 6);
        _tile_loadd(7, codes[c][3], 64);
        _tile_dpbsud(3, 4, 7);
      }
      store_sums(sums + first * kPageTokens, 16, kPageTokens * 4);
    });
  }

  // high_sums, low_sums [rows, 16]: weights times 16 digits of V from `digit` on, all sealed pages
  // of a segment.
  static void value_sums(const std::byte* const* pages, const int* page_of, int n_pages,
                         const SealedLayout& layout, int digit, const std::int8_t* high,
                         const std::int8_t* low, int rows, std::int32_t* high_sums,
                         std::int32_t* low_sums) {
    alignas(64) std::uint8_t codes[kSegmentPages][1024];  // 64 tokens of 16 digits each
    for (int n = 0; n < n_pages; ++n)
      for (int t = 0; t < 4; ++t)
        unpack(pages[n] + layout.v_codes + (t * layout.v_digits + digit) * 4, codes[n] + 256 * t);
    in_blocks(rows, [&](int first, int) {
      _tile_zero(0);
      _tile_zero(1);
      for (int n = 0; n < n_pages; ++n) {
        const int at = first * kSegmentTokens + page_of[n] * kPageTokens;
        _tile_loadd(6, codes[n], 64);
        _tile_loadd(4, high + at, kSegmentTokens);
        _tile_dpbsud(0, 4, 6);
        _tile_loadd(5, low + at, kSegmentTokens);
        _tile_dpbsud(1, 5, 6);
      }
      _tile_stored(0, high_sums + 16 * first, 64);
      _tile_stored(1, low_sums + 16 * first, 64);
    });
  }
};

}  // namespace
}  // namespace foretoken::kernels
