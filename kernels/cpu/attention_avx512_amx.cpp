#include "kernels/cpu/attention_avx512_vector.h"

namespace foretoken::kernels {
namespace {

// Codes meet many query rows at once: their integer sums by AMX's tiles, 16 rows, 64 channels (or
// tokens) and 16 tokens (or digits) an instruction. Sums of integers are the same in any order, and
// what is done with them is what the VNNI kernel does: the two give the same bits.
struct Avx512Amx : Avx512<true> {
  static constexpr bool kTileSums = true;

  struct alignas(64) TileConfig {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {};
  };
  // Rows are taken in blocks of `size`, at most 16, the last one overlapping the one before:
  // everything is read within its bounds, and twice is the same.
  static int block_size(int rows) {
    const int n_blocks = (rows + 15) / 16;
    return (rows + n_blocks - 1) / n_blocks;
  }
  static void begin_tiles(int rows) {
    TileConfig config;
    for (int tile = 0; tile < 6; ++tile)  // sums and queries
      config.rows[tile] = static_cast<std::uint8_t>(block_size(rows));
    config.rows[6] = config.rows[7] = 16;  // codes
    _tile_loadconfig(&config);
  }
  static void end_tiles() { _tile_release(); }

  // Four lane vectors of codes, as bytes, from one of 16 codes a lane.
  static void unpack(const std::byte* packed, std::uint8_t* codes) {
    I z = load_int(packed);
    FORETOKEN_UNROLL for (int j = 0; j < 4; ++j) {
      _mm512_store_si512(codes + 64 * j, low_bits<2>(z));
      z = shift_right<2>(z);
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
    const int size = block_size(rows);
    for (int first = 0; first < rows; first += size) {
      if (first > rows - size) first = rows - size;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
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
      std::int32_t* at = sums + first * kPageTokens;
      _tile_stored(0, at, kPageTokens * 4);
      _tile_stored(1, at + 16, kPageTokens * 4);
      _tile_stored(2, at + 32, kPageTokens * 4);
      _tile_stored(3, at + 48, kPageTokens * 4);
    }
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
    const int size = block_size(rows);
    for (int first = 0; first < rows; first += size) {
      if (first > rows - size) first = rows - size;
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
    }
  }
};

constexpr int index_of(KvMode mode) {
  int index = 0;
  while (kKvFormats[index].mode != mode) ++index;
  return index;
}

}  // namespace

const AttentionKernels kAttentionAvx512AmxInt2 =
    Attention<Avx512Amx, index_of(KvMode::kInt2)>::kernels();

}  // namespace foretoken::kernels
