// The KV cache of one model: every sequence's pages and those kept of ended ones (prefix_index.h),
// from one pool (page_pool.h). Owned and called by the engine thread (attend() fans out over the
// kernel pool). A page is 64 tokens of all layers and KV heads:
// a hot slab (16-bit) and, once sealed, an INT2 slab. Invariants: a page is sealed only from
// committed tokens, when a row first needs its codes, at a border fixed by absolute position; a
// sealed page is immutable; a rejected token is only ever overwritten in a hot page; a page's hot
// copy is released when no future row (position >= committed length) can read it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "foretoken/kernels/thread_pool.h"
#include "foretoken/protocol/result.h"
#include "runtime/kv/calibration.h"
#include "runtime/kv/page_hash.h"

namespace foretoken {

// The modes are the rows of kernels/kv_format.h.
std::string_view kv_mode_name(KvMode mode);  // "bf16", "int2", ...
std::optional<KvMode> parse_kv_mode(std::string_view name);
std::span<const KvMode> kv_modes();
std::string kv_mode_names();  // "bf16, int2 or ...", for messages
// Whether the mode's transforms come from a calibration text (or, without one, from
// KvCalibration::data_free). Other modes take a null calibration.
bool kv_mode_needs_calibration(KvMode mode);

struct KvGeometry {
  int n_layers = 0, n_heads = 0, n_kv_heads = 0, head_dim = 0;
};

struct KvOptions {
  KvMode mode = KvMode::kInt2;
  int sink_tokens = 64;          // multiples of 64
  int window_tokens = 256;       // at least 64
  std::size_t memory_bytes = 0;  // of the pool, hot and sealed slabs together
  int max_sequences = 8;
  int max_rows = 512;  // of one forward pass
  std::int64_t max_model_len = 0;
  // Of the pool, at most so much for tails of the prefix index (prefix_index.h) that nobody else
  // needs; in a mode that seals nothing there are none.
  std::size_t tail_bytes = 0;
  // Negative control of law 2, for its test: a page is sealed as it was when its last slot was
  // first written, which may have been by a drafted token that was rejected afterwards.
  bool fault_seal_drafted = false;
  // Negative control of law 1: resume where pages are held only sealed, the window's 16-bit copies
  // made from their codes.
  bool fault_resume_without_tail = false;
};

using KvSequence = int;  // a handle from open()

// n_rows consecutive positions of one sequence, or a tree of drafted tokens after its first row;
// its rows are first_row .. first_row + n_rows - 1 of the batch.
struct KvRows {
  KvSequence sequence;
  std::int64_t first_position;
  int n_rows;
  int first_row;
  // Null: a chain. Else [n_rows - 1]: row r + 1 follows row parents[r] + 1. A row is stored in the
  // slot of first_position + row whatever its position: keep_path() moves what was accepted.
  const std::int32_t* parents = nullptr;

  std::int64_t position(int row) const {
    if (!parents) return first_position + row;
    std::int64_t depth = 0;
    for (; row > 0; row = parents[row - 1] + 1) ++depth;
    return first_position + depth;
  }
  std::int64_t last_position() const {
    std::int64_t last = position(n_rows - 1);
    if (parents)
      for (int row = 0; row < n_rows; ++row) last = std::max(last, position(row));
    return last;
  }
};

struct KvStats {
  std::size_t pool_bytes = 0;
  std::size_t used_bytes = 0;    // by sequences, what they share with the index included
  std::size_t cached_bytes = 0;  // by the index alone: free for whoever needs it
  std::int64_t hot_pages = 0, sealed_pages = 0;  // slabs held, by whomever
  // The prefix index: its pages, its tails and what they take of their budget.
  std::int64_t cached_pages = 0, tails = 0;
  std::size_t tail_bytes = 0;
  std::int64_t evicted_pages_total = 0, evicted_tails_total = 0;
  std::int64_t sealed_pages_total = 0;  // ever
  std::int64_t int2_page_reads_total =
      0;  // (row group, page) pairs attended to as INT2, layer 0, head 0
  double bytes_per_token_bf16 = 0, bytes_per_token_sealed = 0;  // all layers and heads
};

class KvCache {
 public:
  static Result<std::unique_ptr<KvCache>> create(const KvGeometry& geometry,
                                                 const KvOptions& options,
                                                 std::shared_ptr<const KvCalibration> calibration);
  virtual ~KvCache() = default;

  virtual std::optional<KvSequence> open() = 0;  // nullopt: max_sequences are open
  virtual void close(KvSequence sequence) = 0;   // frees its pages at once
  // A whole request's end: its committed pages enter the prefix index under the names in `chain`.
  virtual void close_and_keep(KvSequence sequence, const PageChain& chain) = 0;
  // Takes over what the prefix index holds of a fresh sequence's beginning, up to the last page
  // border at or below `limit` whose tail is held, and returns that position (0: nothing): it is
  // committed, rows go on from there. Remembers to keep the tails of this prompt's last border and
  // of the border where it leaves what is known.
  virtual std::int64_t resume(KvSequence sequence, const PageChain& chain, std::int64_t n_prompt,
                              std::int64_t limit) = 0;
  virtual void forget(std::uint64_t owner) = 0;  // that owner's pages leave the index
  // Makes room for positions below `length`, if need be at the prefix index's cost. False: the pool
  // is full; the sequence is as it was. Some room is always kept so that an admitted sequence's
  // pages can be sealed.
  virtual bool reserve(KvSequence sequence, std::int64_t length) = 0;
  // Positions below `length` are final. Monotone; rows may not start past it (a prefill commits
  // each chunk). Releases hot copies nobody will read.
  virtual void commit(KvSequence sequence, std::int64_t length) = 0;
  virtual std::int64_t committed(KvSequence sequence) const = 0;
  // Of the last pass's rows from first_position on, which were a tree: those of an accepted path,
  // path[0] = 0, ascending, become consecutive positions. Before commit().
  virtual void keep_path(KvSequence sequence, std::int64_t first_position,
                         std::span<const int> path) = 0;

  // Inside a forward pass, layer by layer: store() all rows' K and V (rotary applied), then
  // attend(). k, v: [n_rows, n_kv_heads * head_dim]; q, out: [n_rows, n_heads * head_dim]; strides
  // in floats.
  virtual void store(int layer, std::span<const KvRows> rows, const float* k, std::int64_t k_stride,
                     const float* v, std::int64_t v_stride) = 0;
  // Seals, in this layer, the pages that these rows read as INT2 and that are not sealed yet; then
  // attends.
  virtual void attend(int layer, std::span<const KvRows> rows, const float* q,
                      std::int64_t q_stride, float* out, std::int64_t out_stride, float scale,
                      kernels::ThreadPool& pool) = 0;

  // The largest total of tokens one sequence could hold if it had the pool alone.
  virtual std::int64_t capacity_tokens() const = 0;
  virtual KvStats stats() const = 0;
  virtual const KvOptions& options() const = 0;

  // For tests: empty if every reference into the pool is accounted for and every page has the
  // copies it should have (debug builds check it after every call); and the bytes of a page, empty
  // if there are none.
  virtual std::string validate() const = 0;
  virtual std::span<const std::byte> sealed_bytes(KvSequence sequence, int page, int layer,
                                                  int kv_head) const = 0;
  virtual std::span<const std::byte> hot_bytes(KvSequence sequence, int page, int layer,
                                               int kv_head) const = 0;
};

}  // namespace foretoken
