// The bytes of a KV cache's pages, on the device that they lie on: the page table (page_table.h)
// decides on the host which page is where, shared, sealed or released; this class alone reads and
// writes what is in them. A page of all layers and KV heads is a hot slab (16 bits) and, once
// sealed, a sealed one. Addresses are of the device: the host computes with them and never reads
// what they point to. All operations take effect in the order of the calls. Owned by the KvCache,
// engine thread.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "foretoken/kernels/attention.h"
#include "foretoken/kernels/thread_pool.h"
#include "runtime/kv/calibration.h"
#include "runtime/kv/page_pool.h"

namespace foretoken {

struct KvGeometry {
  int n_layers = 0, n_heads = 0, n_kv_heads = 0, head_dim = 0;
};

using KvSequence = int;  // a handle from KvCache::open()

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

// What the pages look like, the same on every device (kernels/README.md has the bytes of a page),
// and how many there may be.
struct KvLayout {
  KvGeometry geometry;
  KvMode mode = KvMode::kInt2;
  int sink_pages = 0, window_pages = 0;
  int max_sequences = 0, max_pages = 0;  // max_pages: of a sequence
  int max_rows = 0;                      // of a forward pass

  bool seals() const { return kernels::kv_format(mode).bits > 0; }
  // Of one layer and KV head inside a slab: (layer, head) is at offset (layer * n_kv_heads + head).
  std::size_t hot_stride() const { return kernels::hot_page_bytes(geometry.head_dim); }
  std::size_t sealed_stride() const;
  std::size_t slab_bytes(SlabKind kind) const {
    return (kind == SlabKind::kHot ? hot_stride() : sealed_stride()) *
           std::size_t(geometry.n_layers * geometry.n_kv_heads);
  }
};

class KvPages {
 public:
  struct Page {
    KvSequence sequence;
    int page;
  };

  explicit KvPages(const KvLayout& layout);
  virtual ~KvPages() = default;
  KvPages(const KvPages&) = delete;
  KvPages& operator=(const KvPages&) = delete;

  // The pool: so many bytes of the device's memory, asked for once. Null: there are not as many.
  virtual std::byte* base(std::size_t bytes) = 0;
  virtual void copy_slab(const std::byte* from, std::byte* to, std::size_t bytes) = 0;
  // A position's K and V, of all layers, to another position of its sequence; both pages are hot.
  virtual void copy_position(KvSequence sequence, std::int64_t from, std::int64_t to) = 0;
  // Where a page of a sequence lies from now on; null: nowhere.
  virtual void set_page(KvSequence sequence, int page, SlabKind kind, std::byte* slab);

  // k, v, q, out: rows of the batch on the device, strides in floats. store() writes the rows' K
  // and V into hot slabs, seal() the sealed slabs of pages from their hot ones, attend() reads: a
  // row at position t the codes of page p if p < t / 64 - window_pages and p is past the sink,
  // else its hot slab.
  virtual void store(int layer, std::span<const KvRows> rows, const float* k, std::int64_t k_stride,
                     const float* v, std::int64_t v_stride) = 0;
  virtual void seal(int layer, std::span<const Page> pages, kernels::ThreadPool& pool) = 0;
  virtual void attend(int layer, std::span<const KvRows> rows, const float* q,
                      std::int64_t q_stride, float* out, std::int64_t out_stride, float scale,
                      kernels::ThreadPool& pool) = 0;

  std::byte* slab(KvSequence sequence, int page, SlabKind kind) const {
    return pages(kind)[index(sequence, page)];
  }

 protected:
  std::size_t index(KvSequence sequence, int page) const {
    return std::size_t(sequence) * std::size_t(layout_.max_pages) + std::size_t(page);
  }
  const std::vector<std::byte*>& pages(SlabKind kind) const {
    return kind == SlabKind::kHot ? hot_ : sealed_;
  }
  const KvLayout layout_;

 private:
  std::vector<std::byte*> hot_,
      sealed_;  // [max_sequences, max_pages], the host's copy of the table
};

// The calibration covers the layout's mode.
using MakeKvPages = std::function<std::unique_ptr<KvPages>(
    const KvLayout& layout, std::shared_ptr<const KvCalibration> calibration)>;

// In the host's memory, by the kernels of its CPU.
class HostKvPages : public KvPages {
 public:
  HostKvPages(const KvLayout& layout, std::shared_ptr<const KvCalibration> calibration);
  ~HostKvPages() override;

  std::byte* base(std::size_t bytes) override;
  void copy_slab(const std::byte* from, std::byte* to, std::size_t bytes) override;
  void copy_position(KvSequence sequence, std::int64_t from, std::int64_t to) override;
  void store(int layer, std::span<const KvRows> rows, const float* k, std::int64_t k_stride,
             const float* v, std::int64_t v_stride) override;
  void seal(int layer, std::span<const Page> pages, kernels::ThreadPool& pool) override;
  void attend(int layer, std::span<const KvRows> rows, const float* q, std::int64_t q_stride,
              float* out, std::int64_t out_stride, float scale, kernels::ThreadPool& pool) override;

 protected:
  // Of one layer and KV head inside a page's slab.
  std::byte* part(KvSequence sequence, int page, SlabKind kind, int layer, int kv_head) const {
    return slab(sequence, page, kind) +
           (kind == SlabKind::kHot ? hot_stride_ : sealed_stride_) *
               std::size_t(layer * layout_.geometry.n_kv_heads + kv_head);
  }
  const std::shared_ptr<const KvCalibration> calibration_;
  const std::size_t hot_stride_, sealed_stride_;

 private:
  void* pool_ = nullptr;
  std::size_t pool_bytes_ = 0;
  std::vector<kernels::AttentionRows> attention_rows_;
  std::vector<std::byte> scratch_;
  int scratch_threads_ = 0;
};

}  // namespace foretoken
