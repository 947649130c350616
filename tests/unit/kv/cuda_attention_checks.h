// What the CUDA attention must do, whatever runs it: the host's emulation (cuda_attention_test.cpp)
// or a device (tests/bench/cuda_attention_bench.cu).
#pragma once

#include <functional>
#include <string>

#include "tests/unit/kv/synthetic.h"

namespace foretoken::kv_test {

struct CudaShape {
  int d, n_heads, n_kv_heads;
};
// A model layer: transforms and some sequences of different lengths.
struct CudaFixture {
  CudaShape shape;
  std::mt19937_64 random;
  std::vector<OwnedTransform> owned;
  std::vector<kernels::KvTransform> transforms;
  std::vector<SyntheticSequence> sequences;

  CudaFixture(CudaShape s, const std::vector<int>& lengths, std::uint64_t seed)
      : shape(s), random(seed) {
    for (int h = 0; h < s.n_kv_heads; ++h)
      owned.emplace_back(kernels::KvMode::kInt2, s.d, (h % 2 ? 4 : 0) * s.d / 16,
                         (h % 3 ? 1 : 2) * s.d / 16, random);
    for (const OwnedTransform& t : owned) transforms.push_back(t.view);
    for (const int n : lengths)
      sequences.emplace_back(n, s.n_kv_heads, s.d, kernels::KvMode::kInt2, transforms, random);
  }
  std::vector<float> queries(int n) {
    return normal(static_cast<std::size_t>(n) * shape.n_heads * shape.d, random);
  }
};
struct CudaRows {
  int sequence;
  std::int64_t first;
  int n;
  std::vector<float> q;  // [n, n_heads, d]
};
struct CudaMode {
  bool int2;
  int sink_pages, window_pages;
};
// One call; the rows' outputs in order.
using CudaRun = std::function<std::vector<std::vector<float>>(
    const CudaFixture&, const std::vector<CudaRows>&, const CudaMode&)>;

inline double cuda_error(const CudaFixture& f, const CudaRows& rows, const std::vector<float>& out,
                         const CudaMode& mode) {
  double error = 0, norm = 0;
  const int group = f.shape.n_heads / f.shape.n_kv_heads, d = f.shape.d;
  for (int i = 0; i < rows.n; ++i) {
    for (int h = 0; h < f.shape.n_heads; ++h) {
      const std::size_t at = (static_cast<std::size_t>(i) * f.shape.n_heads + h) * d;
      const auto want = f.sequences[rows.sequence].attend(
          rows.q.data() + at, h / group, rows.first + i, 1 / std::sqrt(double(d)), mode.int2,
          mode.sink_pages, mode.window_pages);
      for (int c = 0; c < d; ++c) {
        if (!std::isfinite(out[at + c])) return 1e9;
        error += (out[at + c] - want[c]) * (out[at + c] - want[c]);
        norm += want[c] * want[c];
      }
    }
  }
  return std::sqrt(error / norm);
}

// Rows of one call, each computed again alone and in smaller companies: the number of outputs whose
// bits differ.
inline int cuda_rows_that_depend_on_company(CudaFixture& f, const std::vector<CudaRows>& rows,
                                            const CudaMode& mode, const std::vector<int>& chunks,
                                            const CudaRun& run) {
  const auto together = run(f, rows, mode);
  const std::size_t width = static_cast<std::size_t>(f.shape.n_heads) * f.shape.d;
  int differing = 0;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    for (const int chunk : chunks) {
      for (int i = 0; i < rows[r].n; i += chunk) {
        const int n = std::min(chunk, rows[r].n - i);
        const auto q = rows[r].q.begin() + static_cast<std::ptrdiff_t>(i * width);
        const auto alone =
            run(f,
                {{rows[r].sequence, rows[r].first + i, n,
                  std::vector<float>(q, q + static_cast<std::ptrdiff_t>(n * width))}},
                mode);
        if (std::memcmp(alone[0].data(), together[r].data() + i * width, alone[0].size() * 4) != 0)
          ++differing;
      }
    }
  }
  return differing;
}

// The call `call` stands for on the host's memory; `run` replaces the pointers if it must.
inline kernels::AttentionCall cuda_call(const CudaFixture& f, const CudaMode& mode) {
  const int d = f.shape.d, width = f.shape.n_heads * d;
  return {.sequences = nullptr,
          .n_sequences = 0,
          .n_heads = f.shape.n_heads,
          .n_kv_heads = f.shape.n_kv_heads,
          .head_dim = d,
          .q_stride = width,
          .out_stride = width,
          .scale = 1 / std::sqrt(static_cast<float>(d)),
          .hot_offset = 0,
          .hot_stride = kernels::hot_page_bytes(d),
          .sealed_offset = 0,
          .sealed_stride = kernels::sealed_page_bytes(kernels::KvMode::kInt2, d),
          .mode = mode.int2 ? kernels::KvMode::kInt2 : kernels::KvMode::kBf16,
          .sink_pages = mode.sink_pages,
          .window_pages = mode.window_pages,
          .transforms = f.transforms.data()};
}

}  // namespace foretoken::kv_test
