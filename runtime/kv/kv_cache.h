// The KV cache of one model: every sequence's pages, from one pool. Owned and called by the engine
// thread (attend() fans out over the kernel pool). A page is 64 tokens of all layers and KV heads:
// a hot slab (16-bit) and, once sealed, an INT2 slab. Invariants: a page is sealed only from
// committed tokens, when a row first needs its codes, at a border fixed by absolute position; a
// sealed page is immutable; a rejected token is only ever overwritten in a hot page; a page's hot
// copy is released when no future row (position >= committed length) can read it.
#pragma once

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
  // Negative control of law 2, for its test: a page is sealed as it was when its last slot was first written,
  // which may have been by a drafted token that was rejected afterwards.
  bool fault_seal_drafted = false;
};

using KvSequence = int;  // a handle from open()

// n_rows consecutive positions of one sequence; its rows are first_row .. first_row + n_rows - 1 of
// the batch.
struct KvRows {
  KvSequence sequence;
  std::int64_t first_position;
  int n_rows;
  int first_row;
};

struct KvStats {
  std::size_t pool_bytes = 0, used_bytes = 0;
  std::int64_t hot_pages = 0, sealed_pages = 0;
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
  // Makes room for positions below `length`. False: the pool is full; nothing changed. Some room is
  // always kept so that an admitted sequence's pages can be sealed.
  virtual bool reserve(KvSequence sequence, std::int64_t length) = 0;
  // Positions below `length` are final. Monotone; rows may not start past it (a prefill commits
  // each chunk). Releases hot copies nobody will read.
  virtual void commit(KvSequence sequence, std::int64_t length) = 0;
  virtual std::int64_t committed(KvSequence sequence) const = 0;

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

  // For tests: empty if every chunk of the pool is free or held exactly once and every page has the
  // copies it should have (debug builds check it after every call); and the bytes of a page, empty
  // if there are none.
  virtual std::string validate() const = 0;
  virtual std::span<const std::byte> sealed_bytes(KvSequence sequence, int page, int layer,
                                                  int kv_head) const = 0;
  virtual std::span<const std::byte> hot_bytes(KvSequence sequence, int page, int layer,
                                               int kv_head) const = 0;
};

}  // namespace foretoken
