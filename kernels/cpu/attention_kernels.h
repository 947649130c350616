// What attention.cpp (the plan: units, scratch, threads) asks of each ISA (the arithmetic).
// Private.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>

#include "foretoken/kernels/attention.h"
#include "kernels/cpu/simd.h"

namespace foretoken::kernels {

inline constexpr int kSegmentTokens = 512;
inline constexpr int kSegmentPages = kSegmentTokens / kPageTokens;
// A unit has at most this many query rows times query heads of the group (more only if the group
// itself is larger). Its logits, [64, 528] floats, are 132 KiB, and the K and V of a segment 256
// KiB at d = 128 in bf16: together within a core's L2 (1 to 2 MiB), which is where all its rows
// share them.
inline constexpr int kUnitRows = 64;
inline constexpr int kLogitStride =
    kSegmentTokens + 16;  // not a power of two: rows spread over cache sets

// Rows of one sequence that stand in one query page, of one KV head. Unit row i is row first_row +
// i / group of the sequence, query head kv_head * group + i % group.
struct AttentionUnit {
  const AttentionCall* call;
  const AttentionRows* sequence;
  int kv_head;
  int first_row, n_rows;  // rows of the sequence
  int group;              // query heads a KV head
  std::int64_t position;  // of its first row
  int n_segments;
  // A tree's row reads the last pages of its path as copies, in the order of its positions.
  const std::byte* const* path_pages =
      nullptr;  // of its sequence's page path_begin and those after
  std::int64_t path_begin = 0;
  FORETOKEN_INLINE int rows() const { return n_rows * group; }
  FORETOKEN_INLINE std::int64_t last_position() const { return position + n_rows - 1; }
  FORETOKEN_INLINE std::int64_t query_page() const { return position / kPageTokens; }
  FORETOKEN_INLINE const std::byte* hot_page(std::int64_t page) const {
    if (path_pages != nullptr && page >= path_begin) return path_pages[page - path_begin];
    return sequence->hot[page] + call->hot_offset + kv_head * call->hot_stride;
  }
  // Split rule (attention.h).
  FORETOKEN_INLINE bool reads_sealed(std::int64_t page) const {
    return call->mode != KvMode::kBf16 && page >= call->sink_pages &&
           page < query_page() - call->window_pages;
  }
  FORETOKEN_INLINE bool reads_any_sealed() const {
    return reads_sealed(query_page() - call->window_pages - 1);
  }
};

// A unit's queries: [rows, d] times the softmax scale; in digits, int8 or (wide) 256 digits + low,
// with step and sum. Digits are filled where they are the same for every page (K by row).
struct AttentionQueries {
  float* plain;         // [rows, d]
  std::int8_t* digits;  // [rows, k_digits of the mode]
  std::int8_t* low;     // likewise
  float* step;          // [rows]
  std::int32_t* sum;    // [rows], of digits
  float* total;         // [rows], sum of the transformed query, which a row's centre multiplies
  // [rows, d] each: plain as the sum of two bf16, for kernels that multiply by tiles.
  std::uint16_t* bf16_high;
  std::uint16_t* bf16_low;
};
// Softmax state of rows over some segments: out = (o + sealed_mass * v_mean + (o2 v_decode)) /
// mass.
struct AttentionState {
  float* maximum;      // [rows]
  float* mass;         // [rows] sum of exp(logit - maximum), all pages
  float* sealed_mass;  // [rows] of it, on sealed pages
  float* o;            // [rows, d] from 16-bit pages
  float* o2;           // [rows, v_digits of the mode] from sealed pages, by digit
};
// One worker's buffers within a segment.
struct AttentionBuffers {
  float* logits;              // [rows, kLogitStride]
  std::int8_t* weights_high;  // [rows, kSegmentTokens]: weight = 256 high + low
  std::int8_t* weights_low;
};

struct AttentionKernels {
  void (*prepare)(const AttentionUnit&, const AttentionQueries&);
  void (*segment)(const AttentionUnit&, const AttentionQueries&, int segment,
                  const AttentionBuffers&, const AttentionState& out);
  // into = into (+) from, `from` being the next segment's.
  void (*merge)(const AttentionUnit&, const AttentionState& into, const AttentionState& from);
  void (*finish)(const AttentionUnit&, const AttentionState&);
};
// By place in kKvFormats; the first one's, bf16, are never asked for a sealed page.
using AttentionTable = std::array<AttentionKernels, std::size(kKvFormats)>;

}  // namespace foretoken::kernels
