// Pages of one sequence in float32, attended to in double: what is left of a difference to
// another implementation is then the model's own.
#pragma once

#include <cmath>
#include <cstdlib>
#include <memory>
#include <vector>

#include "runtime/model/sequence_memory.h"

namespace foretoken::testing {

class FloatPages final : public KvPages {
 public:
  explicit FloatPages(const KvLayout& layout)
      : KvPages(layout),
        geometry_(layout.geometry),
        k_(std::size_t(geometry_.n_layers)),
        v_(k_.size()) {}

  // Positions are kept in order: no slab of the pool is ever written.
  std::byte* base(std::size_t) override { return &pool_; }
  void copy_slab(const std::byte*, std::byte*, std::size_t) override {}
  void seal(int, std::span<const Page>, kernels::ThreadPool&) override {}

  void store(int layer, std::span<const KvRows> rows, const float* k, std::int64_t k_stride,
             const float* v, std::int64_t v_stride) override {
    const auto width = std::size_t(geometry_.n_kv_heads * geometry_.head_dim);
    for (const KvRows& r : rows) {
      for (int i = 0; i < r.n_rows; ++i) {
        put(k_[std::size_t(layer)], std::size_t(r.first_position + i) * width,
            k + (r.first_row + i) * k_stride, width);
        put(v_[std::size_t(layer)], std::size_t(r.first_position + i) * width,
            v + (r.first_row + i) * v_stride, width);
      }
    }
  }
  void attend(int layer, std::span<const KvRows> rows, const float* q, std::int64_t q_stride,
              float* out, std::int64_t out_stride, float scale, kernels::ThreadPool&) override {
    for (const KvRows& r : rows) {
      for (int i = 0; i < r.n_rows; ++i) {
        for (int h = 0; h < geometry_.n_heads; ++h) {
          attend_row(layer, h, r.first_position + i, q + (r.first_row + i) * q_stride,
                     out + (r.first_row + i) * out_stride, scale);
        }
      }
    }
  }

  void copy_position(KvSequence, std::int64_t, std::int64_t) override { std::abort(); }

 private:
  static void put(std::vector<float>& to, std::size_t at, const float* from, std::size_t n) {
    if (to.size() < at + n) to.resize(at + n);
    std::copy(from, from + n, to.begin() + std::ptrdiff_t(at));
  }
  void attend_row(int layer, int head, std::int64_t position, const float* q, float* out,
                  float scale) const {
    const auto d = std::size_t(geometry_.head_dim), n = std::size_t(position) + 1;
    const std::size_t width = d * std::size_t(geometry_.n_kv_heads),
                      at = std::size_t(head / (geometry_.n_heads / geometry_.n_kv_heads)) * d;
    q += std::size_t(head) * d;
    out += std::size_t(head) * d;
    std::vector<double> weight(n), sum(d);
    double best = -1e300, total = 0;
    for (std::size_t j = 0; j < n; ++j) {
      double dot = 0;
      for (std::size_t i = 0; i < d; ++i)
        dot += double(q[i]) * double(k_[std::size_t(layer)][j * width + at + i]);
      best = std::max(best, weight[j] = dot * double(scale));
    }
    for (double& w : weight) total += w = std::exp(w - best);
    for (std::size_t j = 0; j < n; ++j) {
      for (std::size_t i = 0; i < d; ++i)
        sum[i] += weight[j] / total * double(v_[std::size_t(layer)][j * width + at + i]);
    }
    for (std::size_t i = 0; i < d; ++i) out[i] = float(sum[i]);
  }

  const KvGeometry geometry_;
  std::byte pool_{};
  std::vector<std::vector<float>> k_, v_;  // by layer: [positions, n_kv_heads * head_dim]
};

inline SequenceMemory float_memory(const KvGeometry& geometry, std::int64_t max_tokens) {
  const KvOptions options{.mode = KvMode::kBf16,
                          .memory_bytes = std::size_t(1) << 30,
                          .max_sequences = 1,
                          .max_model_len = max_tokens};
  std::vector<std::unique_ptr<KvCache>> classes;
  classes.push_back(
      KvCache::create(geometry, options, nullptr,
                      [](const KvLayout& layout, std::shared_ptr<const KvCalibration>) {
                        return std::make_unique<FloatPages>(layout);
                      })
          .value());
  return SequenceMemory(std::move(classes));
}

}  // namespace foretoken::testing
