#include "tests/support/faulty_pages.h"

#include <cstring>
#include <map>
#include <tuple>
#include <vector>

#include "foretoken/kernels/kv_page.h"
#include "tests/support/model_decorator.h"

namespace foretoken::testing {
namespace {

using kernels::kPageTokens;

class SealDrafted final : public HostKvPages {
 public:
  using HostKvPages::HostKvPages;
  void store(int layer, std::span<const KvRows> rows, const float* k, std::int64_t k_stride,
             const float* v, std::int64_t v_stride) override {
    HostKvPages::store(layer, rows, k, k_stride, v, v_stride);
    for (const KvRows& r : rows) {
      for (std::int64_t at = r.first_position; at < r.first_position + r.n_rows; ++at) {
        if (at % kPageTokens != kPageTokens - 1) continue;
        const int page = static_cast<int>(at / kPageTokens);
        const std::byte* bytes = part(r.sequence, page, SlabKind::kHot, layer, 0);
        copies_.try_emplace({r.sequence, page, layer}, bytes, bytes + layer_bytes());
      }
    }
  }
  void seal(int layer, std::span<const Page> pages, kernels::ThreadPool& pool) override {
    for (const Page& p : pages) {
      const auto& copy = copies_.at({p.sequence, p.page, layer});
      std::memcpy(part(p.sequence, p.page, SlabKind::kHot, layer, 0), copy.data(), copy.size());
    }
    HostKvPages::seal(layer, pages, pool);
  }

 private:
  std::size_t layer_bytes() const {
    return hot_stride_ * static_cast<std::size_t>(layout_.geometry.n_kv_heads);
  }
  std::map<std::tuple<int, int, int>, std::vector<std::byte>> copies_;
};

class ResumeFromCodes final : public HostKvPages {
 public:
  ResumeFromCodes(const KvLayout& layout, std::shared_ptr<const KvCalibration> calibration)
      : HostKvPages(layout, std::move(calibration)),
        taken_(static_cast<std::size_t>(layout.max_sequences * layout.max_pages)) {}
  void set_page(KvSequence sequence, int page, SlabKind kind, std::byte* slab) override {
    HostKvPages::set_page(sequence, page, kind, slab);
    if (kind == SlabKind::kHot) taken_[index(sequence, page)] = slab != nullptr;
  }
  void store(int layer, std::span<const KvRows> rows, const float* k, std::int64_t k_stride,
             const float* v, std::int64_t v_stride) override {
    for (const KvRows& r : rows) {
      for (std::int64_t at = r.first_position; at < r.first_position + r.n_rows; ++at)
        taken_[index(r.sequence, static_cast<int>(at / kPageTokens))] = false;
    }
    HostKvPages::store(layer, rows, k, k_stride, v, v_stride);
  }
  void attend(int layer, std::span<const KvRows> rows, const float* q, std::int64_t q_stride,
              float* out, std::int64_t out_stride, float scale,
              kernels::ThreadPool& pool) override {
    for (const KvRows& r : rows) {
      const int end = static_cast<int>(r.first_position / kPageTokens);
      for (int page = layout_.sink_pages; layout_.seals() && page < end; ++page) {
        if (taken_[index(r.sequence, page)]) make_up(r.sequence, page);
      }
    }
    HostKvPages::attend(layer, rows, q, q_stride, out, out_stride, scale, pool);
  }

 private:
  void make_up(KvSequence sequence, int page) {
    const int d = layout_.geometry.head_dim, heads = layout_.geometry.n_kv_heads;
    std::vector<std::byte> codes(sealed_stride_);
    std::vector<float> k(static_cast<std::size_t>(kPageTokens * d)), v(k.size());
    auto& copy = copies_.emplace_back(layout_.slab_bytes(SlabKind::kHot));
    for (int i = 0; i < layout_.geometry.n_layers * heads; ++i) {
      const auto& transform = calibration_->layer(layout_.mode, i / heads)[i % heads];
      kernels::seal_page(part(sequence, page, SlabKind::kHot, i / heads, i % heads), layout_.mode,
                         transform, d, codes.data());
      kernels::dequantize_sealed_page(codes.data(), layout_.mode, transform, d, k.data(), v.data());
      for (int slot = 0; slot < kPageTokens; ++slot)
        kernels::store_kv(&copy[hot_stride_ * static_cast<std::size_t>(i)], d, slot, &k[slot * d],
                          &v[slot * d]);
    }
    set_page(sequence, page, SlabKind::kHot, copy.data());
    taken_[index(sequence, page)] = false;
  }
  std::vector<bool> taken_;  // [max_sequences, max_pages] has a hot page that it did not store
  std::vector<std::vector<std::byte>> copies_;
};

class FaultyPagesModel final : public ModelDecorator {
 public:
  FaultyPagesModel(std::shared_ptr<const Model> inner, PageFault fault)
      : ModelDecorator(std::move(inner)), fault_(fault) {}
  Result<std::unique_ptr<KvCache>> make_kv(
      const KvOptions& options, std::shared_ptr<const KvCalibration> calibration) const override {
    return KvCache::create(kv_geometry(), options, std::move(calibration), faulty_pages(fault_));
  }

 private:
  const PageFault fault_;
};

}  // namespace

MakeKvPages faulty_pages(PageFault fault) {
  return [fault](const KvLayout& layout,
                 std::shared_ptr<const KvCalibration> calibration) -> std::unique_ptr<KvPages> {
    if (fault == PageFault::kSealDrafted)
      return std::make_unique<SealDrafted>(layout, std::move(calibration));
    return std::make_unique<ResumeFromCodes>(layout, std::move(calibration));
  };
}

std::shared_ptr<const Model> with_faulty_pages(std::shared_ptr<const Model> model,
                                               PageFault fault) {
  return std::make_shared<FaultyPagesModel>(std::move(model), fault);
}

}  // namespace foretoken::testing
