#include "runtime/kv/kv_pages.h"

#include <sys/mman.h>

#include <cstring>

#include "foretoken/kernels/kv_page.h"

namespace foretoken {
namespace {

using kernels::kPageTokens;

constexpr std::size_t kCacheLine = 64;

}  // namespace

std::size_t KvLayout::sealed_stride() const {
  const std::size_t bytes = kernels::sealed_page_bytes(mode, geometry.head_dim);
  return (bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
}

KvPages::KvPages(const KvLayout& layout)
    : layout_(layout), hot_(index(layout.max_sequences, 0)), sealed_(hot_.size()) {}

void KvPages::set_page(KvSequence sequence, int page, SlabKind kind, std::byte* slab) {
  (kind == SlabKind::kHot ? hot_ : sealed_)[index(sequence, page)] = slab;
}

HostKvPages::HostKvPages(const KvLayout& layout, std::shared_ptr<const KvCalibration> calibration)
    : KvPages(layout),
      calibration_(std::move(calibration)),
      hot_stride_(layout.hot_stride()),
      sealed_stride_(layout.sealed_stride()) {
  attention_rows_.reserve(std::size_t(layout.max_sequences));
}

HostKvPages::~HostKvPages() {
  if (pool_ != nullptr) munmap(pool_, pool_bytes_);
}

// Mapped, not allocated: what no page has used takes no memory.
std::byte* HostKvPages::base(std::size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  pool_ = memory;
  pool_bytes_ = bytes;
  madvise(pool_, pool_bytes_, MADV_HUGEPAGE);
  return static_cast<std::byte*>(pool_);
}

void HostKvPages::copy_slab(const std::byte* from, std::byte* to, std::size_t bytes) {
  std::memcpy(to, from, bytes);
}

void HostKvPages::copy_position(KvSequence sequence, std::int64_t from, std::int64_t to) {
  const KvGeometry& g = layout_.geometry;
  const auto page = [](std::int64_t position) { return int(position / kPageTokens); };
  for (int layer = 0; layer < g.n_layers; ++layer) {
    for (int h = 0; h < g.n_kv_heads; ++h) {
      kernels::copy_kv(part(sequence, page(from), SlabKind::kHot, layer, h),
                       int(from % kPageTokens), g.head_dim,
                       part(sequence, page(to), SlabKind::kHot, layer, h), int(to % kPageTokens));
    }
  }
}

void HostKvPages::store(int layer, std::span<const KvRows> rows, const float* k,
                        std::int64_t k_stride, const float* v, std::int64_t v_stride) {
  const int d = layout_.geometry.head_dim;
  for (const KvRows& r : rows) {
    for (int i = 0; i < r.n_rows; ++i) {
      const std::int64_t position = r.first_position + i;
      std::byte* page = part(r.sequence, int(position / kPageTokens), SlabKind::kHot, layer, 0);
      for (int h = 0; h < layout_.geometry.n_kv_heads; ++h) {
        kernels::store_kv(page + hot_stride_ * std::size_t(h), d, int(position % kPageTokens),
                          k + (r.first_row + i) * k_stride + std::ptrdiff_t(h) * d,
                          v + (r.first_row + i) * v_stride + std::ptrdiff_t(h) * d);
      }
    }
  }
}

void HostKvPages::seal(int layer, std::span<const Page> pages, kernels::ThreadPool& pool) {
  const int heads = layout_.geometry.n_kv_heads;
  pool.tasks(int(pages.size()) * heads, [&](int task, int) {
    const auto [sequence, page] = pages[std::size_t(task / heads)];
    const int head = task % heads;
    kernels::seal_page(part(sequence, page, SlabKind::kHot, layer, head), layout_.mode,
                       calibration_->layer(layout_.mode, layer)[head], layout_.geometry.head_dim,
                       part(sequence, page, SlabKind::kSealed, layer, head));
  });
}

void HostKvPages::attend(int layer, std::span<const KvRows> rows, const float* q,
                         std::int64_t q_stride, float* out, std::int64_t out_stride, float scale,
                         kernels::ThreadPool& pool) {
  const KvGeometry& g = layout_.geometry;
  attention_rows_.clear();
  for (const KvRows& r : rows) {
    attention_rows_.push_back({.first_position = r.first_position,
                               .n_rows = r.n_rows,
                               .q = q + r.first_row * q_stride,
                               .out = out + r.first_row * out_stride,
                               .hot = &pages(SlabKind::kHot)[index(r.sequence, 0)],
                               .sealed = &pages(SlabKind::kSealed)[index(r.sequence, 0)],
                               .parents = r.parents});
  }
  if (scratch_.empty() || scratch_threads_ != pool.size()) {
    scratch_threads_ = pool.size();
    scratch_.resize(
        kernels::attention_scratch_bytes(layout_.max_rows, g.n_heads, g.head_dim, pool.size(),
                                         std::int64_t(layout_.max_pages) * kPageTokens) +
        kCacheLine);
  }
  const std::size_t layers_before = std::size_t(layer * g.n_kv_heads);
  const kernels::AttentionCall call{
      .sequences = attention_rows_.data(),
      .n_sequences = int(attention_rows_.size()),
      .n_heads = g.n_heads,
      .n_kv_heads = g.n_kv_heads,
      .head_dim = g.head_dim,
      .q_stride = q_stride,
      .out_stride = out_stride,
      .scale = scale,
      .hot_offset = hot_stride_ * layers_before,
      .hot_stride = hot_stride_,
      .sealed_offset = sealed_stride_ * layers_before,
      .sealed_stride = sealed_stride_,
      .mode = layout_.mode,
      .sink_pages = layout_.sink_pages,
      .window_pages = layout_.window_pages,
      .transforms = layout_.seals() ? calibration_->layer(layout_.mode, layer) : nullptr};
  kernels::attention(call, scratch_.data(), scratch_.size(), pool);
}

}  // namespace foretoken
