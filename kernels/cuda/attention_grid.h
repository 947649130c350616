// What an attention call is on the device: its queries in tiles of eight rows, its pages in parts,
// and where a part's state lies in scratch. Made on the host, passed to the kernels by value.
//
// A *part* is a range of pages fixed by absolute position: kSealedPages INT2 pages, or kHotPages
// 16-bit pages, of one KV head. One block of threads computes its state (largest logit, mass,
// output) for up to 8 * kTiles rows; states are merged in ascending order of position. Neither
// knows how many rows or sequences there are, nor how the blocks are scheduled (law 1).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "foretoken/kernels/attention.h"
#include "kernels/layout/kv_page_layout.h"

namespace foretoken::kernels::cuda {

inline constexpr int kTileRows = 8;  // the n of the matrix instructions
// Sequences in one launch, whose description (below) is a kernel parameter; longer calls are cut.
inline constexpr int kMaxSequences = 32;

// Where a part's pages go: kWarps warps, each a run of kPagesPerWarp INT2 pages or one 16-bit page.
// How many of them are in flight, or blocks on a multiprocessor, is not part of it: it changes no
// bits.
template <int PagesPerWarp, int Warps>
struct Partition {
  static constexpr int kPagesPerWarp = PagesPerWarp, kWarps = Warps;
  static constexpr int kSealedPages = PagesPerWarp * Warps, kHotPages = Warps;
  static_assert(PagesPerWarp <= 8);  // a warp's page r is known by lanes 4 r .. 4 r + 3
};
// It is part of a row's arithmetic. A warp's run is a segment of 512 tokens, as on the CPU; four
// are merged in their block. On an H100 (us of the pages' kernel; 4 pages x 4 warps, 8 x 4, 4 x 8):
// depth 8K, batch 1, a row 8.2, 11.7, 10.0; 80K 27.7, 25.2, 30.6; 32K, batch 32, 246, 248, 250, and
// four rows 336, 298, 447.
using AttentionPartition = Partition<8, 4>;

// The queries of eight rows and one KV head, as the matrix instructions want them. Logits are in
// units of log 2. INT2: logit = mean . q + scale_t * (step16 * 16 sum(digits * codes) + offset).
// Sixteen-bit parts: high + low is the query to 16 bits; two orders of the channels, in which lane
// 4 n + q of a warp finds its channels in a row: `mean_*` as they are, `hot_*` with channel
// 16 k + 8 h + 2 q + e at q * d/4 + 4 k + 2 h + e (the channel pairs of a 16-bit page's K).
template <int D>
struct alignas(16) QueryTile {
  std::int8_t digits[kTileRows][D];
  std::uint16_t mean_high[kTileRows][D], mean_low[kTileRows][D];
  std::uint16_t hot_high[kTileRows][D], hot_low[kTileRows][D];
  float step16[kTileRows], offset[kTileRows];
};
inline std::size_t query_tile_bytes(int d) {
  return d == 64 ? sizeof(QueryTile<64>) : sizeof(QueryTile<128>);
}

struct StateMeta {
  float maximum, mass;
};

struct GridSequence {
  std::int64_t first_position;
  const float* q;
  float* out;
  const std::byte* const* hot;
  const std::byte* const* sealed;
  int n_rows;  // of the sequence; times the group: query rows, row / group, row % group
  int first_tile, n_tiles;        // of eight query rows
  int first_item;                 // in the grid
  int n_low, high_begin, n_high;  // 16-bit parts [0, n_low) and [high_begin, high_begin + n_high)
  int sealed_part, n_sealed;      // INT2 parts
  int sealed_begin, sealed_end;   // pages any row reads as INT2
  std::size_t first_state, first_meta;
  FORETOKEN_HOST_DEVICE int n_hot() const { return n_low + n_high; }
  FORETOKEN_HOST_DEVICE int n_states() const { return n_hot() + n_sealed; }
  FORETOKEN_HOST_DEVICE int padded_rows() const { return n_tiles * kTileRows; }
};

struct AttentionGrid {
  GridSequence sequences[kMaxSequences];
  int n_sequences, n_tiles, n_items, most_tiles;
  int n_heads, n_kv_heads, group;
  std::int64_t q_stride, out_stride;
  float scale;
  std::size_t hot_offset, hot_stride, sealed_offset, sealed_stride;
  int int2, sink_pages, window_pages;
  const KvTransform* transforms;
  // Scratch.
  std::byte* queries;  // [n_tiles, n_kv_heads] QueryTile
  float* states;       // by sequence: [n_states, n_kv_heads, padded_rows, d]
  StateMeta* meta;     // by sequence: [n_kv_heads, padded_rows, n_states]

  // Pages [sink_pages, limit) are INT2 for a row at `position` (attention.h).
  FORETOKEN_HOST_DEVICE int int2_limit(std::int64_t position) const {
    const std::int64_t limit = position / kPageTokens - window_pages;
    return int2 && limit > sink_pages ? static_cast<int>(limit) : 0;
  }
};

// Sequences [first, first + n) of the call; scratch pointers from `scratch`, if any. Returns its
// bytes.
template <class P>
std::size_t plan_grid(const AttentionCall& call, int first, int n, std::byte* scratch,
                      AttentionGrid& grid) {
  grid.n_sequences = n;
  grid.n_tiles = grid.n_items = grid.most_tiles = 0;
  grid.n_heads = call.n_heads, grid.n_kv_heads = call.n_kv_heads;
  grid.group = call.n_heads / call.n_kv_heads;
  grid.q_stride = call.q_stride, grid.out_stride = call.out_stride;
  grid.scale = call.scale;
  grid.hot_offset = call.hot_offset, grid.hot_stride = call.hot_stride;
  grid.sealed_offset = call.sealed_offset, grid.sealed_stride = call.sealed_stride;
  grid.int2 = call.mode == KvMode::kInt2, grid.sink_pages = call.sink_pages;
  grid.window_pages = call.window_pages;
  grid.transforms = call.transforms;
  std::size_t states = 0, metas = 0;
  for (int i = 0; i < n; ++i) {
    const AttentionRows& rows = call.sequences[first + i];
    GridSequence& s = grid.sequences[i];
    s = {};
    s.first_position = rows.first_position;
    s.q = rows.q, s.out = rows.out, s.hot = rows.hot, s.sealed = rows.sealed;
    s.n_rows = rows.n_rows;
    s.first_tile = grid.n_tiles;
    s.n_tiles = (rows.n_rows * grid.group + kTileRows - 1) / kTileRows;
    s.first_item = grid.n_items;
    const std::int64_t last = rows.first_position + rows.n_rows - 1;
    const int n_pages = static_cast<int>(last / kPageTokens) + 1;
    s.sealed_end = grid.int2_limit(last);
    s.sealed_begin = std::min(call.sink_pages, s.sealed_end);
    s.sealed_part = s.sealed_begin / P::kSealedPages;
    if (s.sealed_end > 0)
      s.n_sealed = (s.sealed_end + P::kSealedPages - 1) / P::kSealedPages - s.sealed_part;
    // 16-bit pages: up to where any row begins to read codes, and from where some row no longer
    // does.
    const int first_limit = grid.int2_limit(rows.first_position);
    const int end_part = (n_pages + P::kHotPages - 1) / P::kHotPages;
    // The parts with the sinks come before the INT2 ones as soon as any row reads those, for all
    // rows alike: parts are merged in order, and a row's order must not depend on its company.
    s.n_low = s.sealed_end > 0 ? (call.sink_pages + P::kHotPages - 1) / P::kHotPages : 0;
    s.high_begin = std::max(first_limit / P::kHotPages, s.n_low);
    s.n_high = end_part - s.high_begin;
    s.first_state = states, s.first_meta = metas;
    const std::size_t row_states = static_cast<std::size_t>(s.n_states()) * call.n_kv_heads *
                                   static_cast<std::size_t>(s.padded_rows());
    states += row_states * call.head_dim;
    metas += row_states;
    grid.n_tiles += s.n_tiles;
    grid.n_items += s.n_states();
    grid.most_tiles = std::max(grid.most_tiles, s.n_tiles);
  }
  const std::size_t queries =
      static_cast<std::size_t>(grid.n_tiles) * call.n_kv_heads * query_tile_bytes(call.head_dim);
  if (scratch == nullptr) return queries + states * sizeof(float) + metas * sizeof(StateMeta);
  grid.queries = scratch;
  grid.states = reinterpret_cast<float*>(scratch + queries);
  grid.meta = reinterpret_cast<StateMeta*>(scratch + queries + states * sizeof(float));
  return queries + states * sizeof(float) + metas * sizeof(StateMeta);
}

}  // namespace foretoken::kernels::cuda
