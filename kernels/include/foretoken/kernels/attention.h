// Causal paged attention over hot (16-bit) and sealed (coded) pages of one KV head.
// An online softmax inside segments of 512 tokens fixed by absolute position, merged in order: the
// same arithmetic for prefill, decode and verify, for any number of rows and threads (law 1).
// A row at position t reads page p by its codes when p < floor(t/64) - window_pages and p >=
// sink_pages (and the mode is not bf16), otherwise from its 16-bit copy. Packed codes are read
// directly: no dequantised page is ever written to memory; unpacked codes are shared by all rows
// and all query heads of the group.
#pragma once

#include <cstdint>

#include "foretoken/kernels/kv_page.h"
#include "foretoken/kernels/thread_pool.h"

namespace foretoken::kernels {

// Rows of one sequence: consecutive positions, or a tree of drafted ones.
struct AttentionRows {
  std::int64_t
      first_position;  // of row 0; row i is at first_position + i and sees positions <= its own
  int n_rows;
  const float* q;  // [n_rows, n_heads, head_dim], rotary applied, row stride q_stride
  float* out;      // [n_rows, n_heads, head_dim], row stride out_stride
  const std::byte* const*
      hot;  // [n_pages] slab of each page's 16-bit copy, null where there is none
  const std::byte* const* sealed;  // [n_pages] slab of each page's codes, null where there are none
  // Null: a chain, as above. Else a tree: [n_rows - 1], row r + 1 follows row parents[r] + 1,
  // parents[r] in -1 .. r - 1. Row i's K and V are in the slot of position first_position + i all
  // the same, but it stands at first_position + (rows before it on its path) and sees its path
  // alone: with the bits that it has as the last row of that path's chain. At most kTreeRows rows.
  // CPU alone: the CUDA kernels refuse trees.
  const std::int32_t* parents = nullptr;
};
inline constexpr int kTreeRows = 1 + 64;  // a path crosses one page border at most

struct AttentionCall {
  const AttentionRows* sequences;
  int n_sequences;
  int n_heads, n_kv_heads, head_dim;
  std::int64_t q_stride, out_stride;  // in floats
  float scale;                        // 1 / sqrt(head_dim)
  // byte offset of (this layer, KV head h) inside a slab: offset + h * stride
  std::size_t hot_offset, hot_stride, sealed_offset, sealed_stride;
  KvMode mode;  // of the sealed pages; bf16: every page is read from its 16-bit copy
  int sink_pages, window_pages;
  const KvTransform* transforms;  // [n_kv_heads] of this layer, or null
};

// Scratch is owned by the caller, sized once by attention_scratch_bytes for the largest call it
// will make.
std::size_t attention_scratch_bytes(int max_rows, int n_heads, int head_dim, int n_threads,
                                    std::int64_t max_tokens);
void attention(const AttentionCall& call, std::byte* scratch, std::size_t scratch_bytes,
               ThreadPool& pool);

}  // namespace foretoken::kernels
