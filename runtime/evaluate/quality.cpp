#include "runtime/evaluate/quality.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "foretoken/kernels/kv_page.h"
#include "foretoken/kernels/sampling.h"
#include "runtime/model/model.h"

namespace foretoken {
namespace {

constexpr int kChunkRows = 64;  // logits of so many rows are held at once, twice

// KL(p || q) of two rows of logits, in double, and both log-probabilities of `next`.
struct RowScore {
  double kl, log_p, log_q;
  bool same_top;
};
RowScore score(const float* p, const float* q, std::int64_t n, TokenId next) {
  const double p_sum = kernels::log_sum_exp(p, n, 1.0f), q_sum = kernels::log_sum_exp(q, n, 1.0f);
  double kl = 0;
  for (std::int64_t v = 0; v < n; ++v) {
    const double log_p = p[v] - p_sum;
    // Below e^-40 a token adds less than 1e-13 to the sum.
    if (log_p > -40) kl += std::exp(log_p) * (log_p - (q[v] - q_sum));
  }
  return {kl, p[next] - p_sum, q[next] - q_sum, kernels::argmax(p, n) == kernels::argmax(q, n)};
}

}  // namespace

Result<std::vector<KvQuality>> measure_kv_quality(const Model& model,
                                                  std::span<const std::vector<TokenId>> windows,
                                                  std::span<const KvQualityCase> cases,
                                                  const KvQualityOptions& options,
                                                  kernels::ThreadPool& pool,
                                                  std::function<void(double)> progress) {
  std::size_t longest = 0;
  for (const auto& window : windows) {
    longest = std::max(longest, window.size());
    if (window.size() < static_cast<std::size_t>(options.first_scored) + 2) {
      return Error{ErrorCode::kInvalidInput,
                   fmt::format("KV quality: a window has {} tokens, wanted at least {}",
                               window.size(), options.first_scored + 2)};
    }
  }
  const KvGeometry geometry = model.kv_geometry();
  const auto pages = static_cast<std::size_t>(longest / kernels::kPageTokens + 2);
  KvOptions kv_options{.mode = KvMode::kBf16,
                       .sink_tokens = options.sink_tokens,
                       .window_tokens = options.window_tokens,
                       .memory_bytes = 2 * pages * kernels::hot_page_bytes(geometry.head_dim) *
                                       geometry.n_layers * geometry.n_kv_heads,
                       .max_sequences = 1,
                       .max_rows = kChunkRows,
                       .max_model_len = static_cast<std::int64_t>(longest)};
  std::vector<std::unique_ptr<KvCache>> caches;  // bf16 first, then the cases
  for (std::size_t c = 0; c <= cases.size(); ++c) {
    if (c == 1) kv_options.mode = KvMode::kInt2;
    auto cache = KvCache::create(geometry, kv_options, c == 0 ? nullptr : cases[c - 1].calibration);
    if (!cache) return cache.error();
    caches.push_back(std::move(*cache));
  }
  auto workspace = model.make_workspace(kChunkRows, kChunkRows);
  const std::int64_t vocabulary = model.config().n_vocab;
  std::vector<float> reference(static_cast<std::size_t>(kChunkRows) * vocabulary),
      logits(reference.size());
  std::vector<RowScore> scores(kChunkRows);
  std::vector<KvQuality> results(cases.size());
  std::vector<double> nll(cases.size(), 0.0), nll_bf16(cases.size(), 0.0);

  std::size_t total = 0, done = 0;
  for (const auto& window : windows) total += window.size();
  for (const auto& window : windows) {
    for (const auto& cache : caches) cache->open();
    for (std::size_t first = 0; first < window.size(); first += kChunkRows) {
      const int n = static_cast<int>(std::min<std::size_t>(kChunkRows, window.size() - first));
      const KvRows rows{0, static_cast<std::int64_t>(first), n, 0};
      // A row predicts the token after it: the last one predicts nothing.
      std::vector<int> wanted;
      for (int i = 0; i < n; ++i) {
        const std::size_t position = first + i;
        if (position >= static_cast<std::size_t>(options.first_scored) &&
            position + 1 < window.size())
          wanted.push_back(i);
      }
      for (std::size_t c = 0; c < caches.size(); ++c) {
        if (!caches[c]->reserve(0, static_cast<std::int64_t>(first) + n)) {
          return Error{ErrorCode::kInternal, "KV quality: its own cache is too small"};
        }
        ForwardBatch batch;
        batch.tokens = std::span(window).subspan(first, n);
        batch.sequences = {&rows, 1};
        batch.logit_rows = wanted;
        batch.logits = c == 0 ? reference.data() : logits.data();
        model.forward(batch, *caches[c], *workspace, pool);
        caches[c]->commit(0, static_cast<std::int64_t>(first) + n);
        if (c == 0) continue;
        pool.tasks(static_cast<int>(wanted.size()), [&](int i, int) {
          scores[i] = score(reference.data() + i * vocabulary, logits.data() + i * vocabulary,
                            vocabulary, window[first + wanted[i] + 1]);
        });
        for (std::size_t i = 0; i < wanted.size(); ++i) {
          KvQuality& result = results[c - 1];
          ++result.n_scored;
          result.mean_kl += scores[i].kl;
          result.same_top += scores[i].same_top ? 1 : 0;
          nll_bf16[c - 1] -= scores[i].log_p;
          nll[c - 1] -= scores[i].log_q;
        }
      }
      done += n;
      if (progress) progress(static_cast<double>(done) / static_cast<double>(total));
    }
    for (const auto& cache : caches) cache->close(0);
  }
  for (std::size_t c = 0; c < cases.size(); ++c) {
    const auto n = static_cast<double>(results[c].n_scored);
    results[c].name = cases[c].name;
    results[c].mean_kl /= n;
    results[c].same_top /= n;
    results[c].perplexity_bf16 = std::exp(nll_bf16[c] / n);
    results[c].perplexity = std::exp(nll[c] / n);
    results[c].int2_page_reads = caches[c + 1]->stats().int2_page_reads_total;
  }
  return results;
}

}  // namespace foretoken
