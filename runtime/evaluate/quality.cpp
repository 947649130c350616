#include "runtime/evaluate/quality.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "foretoken/kernels/sampling.h"
#include "foretoken/protocol/failure.h"
#include "runtime/model/model.h"

namespace foretoken {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// A row of the reference's logits, with what every case's comparison needs of it.
struct ReferenceRow {
  double log_sum = 0;
  std::int32_t top = 0;
  std::vector<float> p;  // probabilities
};
void prepare(const float* logits, std::int64_t n, ReferenceRow& row) {
  row.log_sum = kernels::log_sum_exp(logits, n, 1.0f);
  row.top = kernels::argmax(logits, n);
  row.p.resize(std::size_t(n));
  for (std::int64_t v = 0; v < n; ++v) row.p[v] = std::exp(float(logits[v] - row.log_sum));
}

// KL(p || q) of the reference's logits a and a case's b: sum p (log p - log q)
//   = sum p (a - b) - log_sum(a) + log_sum(b),
// exact zero for equal rows; and both log-probabilities of `next`.
struct RowScore {
  double kl, log_p, log_q;
  bool same_top;
};
RowScore score(const ReferenceRow& row, const float* a, const float* b, std::int64_t n,
               TokenId next) {
  const double log_sum = kernels::log_sum_exp(b, n, 1.0f);
  double sum = 0;
  for (std::int64_t v = 0; v < n; ++v) sum += double(row.p[v]) * (double(a[v]) - b[v]);
  return {sum - row.log_sum + log_sum, a[next] - row.log_sum, b[next] - log_sum,
          kernels::argmax(b, n) == row.top};
}

// Sums over scored positions, by blocks of consecutive ones.
struct Sums {
  std::int64_t n = 0;
  double kl = 0, same_top = 0, nll_bf16 = 0, nll = 0;
  void add(const RowScore& s) {
    ++n;
    kl += s.kl;
    same_top += s.same_top ? 1 : 0;
    nll_bf16 -= s.log_p;
    nll -= s.log_q;
  }
};

// The mean over all positions, and the standard error that the blocks' means show: of a ratio of
// sums, for the last block of a window is shorter.
template <class Value>
MeanEstimate estimate(const std::vector<Sums>& blocks, Value value) {
  double sum = 0, n = 0;
  for (const Sums& b : blocks) sum += value(b), n += double(b.n);
  if (n == 0) return {};
  const double mean = sum / n;
  double squares = 0;
  for (const Sums& b : blocks) {
    const double residual = value(b) - mean * double(b.n);
    squares += residual * residual;
  }
  const auto count = double(blocks.size());
  return {mean, count > 1 ? std::sqrt(squares * count / (count - 1)) / n : 0.0};
}

KvQualityFigures figures(const std::vector<Sums>& blocks) {
  KvQualityFigures out;
  double nll_bf16 = 0, nll = 0;
  for (const Sums& b : blocks) out.n_scored += b.n, nll_bf16 += b.nll_bf16, nll += b.nll;
  const auto n = double(std::max<std::int64_t>(out.n_scored, 1));
  out.perplexity_bf16 = std::exp(nll_bf16 / n);
  out.perplexity = std::exp(nll / n);
  const MeanEstimate log_ratio = estimate(blocks, [](const Sums& b) { return b.nll - b.nll_bf16; });
  out.perplexity_change = {std::expm1(log_ratio.value),
                           std::exp(log_ratio.value) * log_ratio.standard_error};
  out.kl = estimate(blocks, [](const Sums& b) { return b.kl; });
  out.same_top = estimate(blocks, [](const Sums& b) { return b.same_top; });
  return out;
}

// One row after everything that is committed, not committed itself: the same step again and again.
double median_step_seconds(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

}  // namespace

Result<std::vector<std::unique_ptr<SequenceMemory>>> make_quality_caches(
    const Model& model, std::span<const KvQualityCase> cases, const KvQualityOptions& options,
    std::int64_t tokens, int max_rows) {
  std::vector<std::unique_ptr<SequenceMemory>> caches;
  for (const KvQualityCase& c : cases) {
    auto cache = model.make_memory_of_one({.mode = c.mode,
                                           .sink_tokens = options.sink_tokens,
                                           .window_tokens = options.window_tokens,
                                           .max_rows = max_rows,
                                           .max_model_len = tokens + max_rows},
                                          c.calibration);
    if (!cache) return cache.error();
    caches.push_back(std::move(*cache));
  }
  return caches;
}

Result<std::vector<KvQuality>> measure_kv_quality(const Model& model,
                                                  std::span<const KvQualityWindow> windows,
                                                  std::span<const KvQualityCase> others,
                                                  const KvQualityOptions& options,
                                                  kernels::ThreadPool& pool,
                                                  std::function<void(double)> progress) {
  std::size_t longest = 0;  // index
  for (std::size_t w = 0; w < windows.size(); ++w) {
    if (windows[w].tokens.size() > windows[longest].tokens.size()) longest = w;
    if (windows[w].tokens.size() < std::size_t(options.first_scored) + 2) {
      return failure(ErrorCode::kInvalidInput,
                     "KV quality: the window of {} has {} tokens, wanted at least {}",
                     windows[w].name, windows[w].tokens.size(), options.first_scored + 2);
    }
  }
  if (windows.empty()) return Error{ErrorCode::kInvalidInput, "KV quality: no text"};
  std::vector<KvQualityCase> cases{{"bf16", KvMode::kBf16, nullptr}};
  cases.insert(cases.end(), others.begin(), others.end());
  auto made = make_quality_caches(model, cases, options,
                                  std::int64_t(windows[longest].tokens.size()), kQualityChunkRows);
  if (!made) return made.error();
  const auto caches = std::move(made).value();
  auto workspace = model.make_workspace(kQualityChunkRows, kQualityChunkRows);
  const std::int64_t vocabulary = model.config().n_vocab;
  const auto reference = model.make_logit_rows(kQualityChunkRows),
             logits = model.make_logit_rows(kQualityChunkRows);
  std::vector<const float*> rows_of_reference(kQualityChunkRows), rows_of_case(kQualityChunkRows);
  std::vector<ReferenceRow> rows_of_bf16(kQualityChunkRows);
  std::vector<RowScore> scores(kQualityChunkRows);
  std::vector<KvQuality> results(cases.size());
  // [case][window] blocks
  std::vector<std::vector<std::vector<Sums>>> blocks(
      cases.size(), std::vector<std::vector<Sums>>(windows.size()));
  std::vector<double> seconds(cases.size(), 0.0);

  std::size_t total = 0, done = 0;
  for (const auto& window : windows) total += window.tokens.size();
  for (std::size_t w = 0; w < windows.size(); ++w) {
    const std::vector<TokenId>& window = windows[w].tokens;
    for (const auto& cache : caches) cache->open();
    for (std::size_t first = 0; first < window.size(); first += kQualityChunkRows) {
      const int n = int(std::min<std::size_t>(kQualityChunkRows, window.size() - first));
      // A row predicts the token after it: the last one predicts nothing.
      std::vector<int> wanted;
      for (int i = 0; i < n; ++i) {
        const std::size_t position = first + i;
        if (position >= std::size_t(options.first_scored) && position + 1 < window.size())
          wanted.push_back(i);
      }
      for (std::size_t c = 0; c < caches.size(); ++c) {
        if (!caches[c]->reserve(0, std::int64_t(first) + n))
          return Error{ErrorCode::kInternal, "KV quality: its own cache is too small"};
        LogitRows& of_case = c == 0 ? *reference : *logits;
        const auto begin = Clock::now();
        model.forward_one({.tokens = std::span(window).subspan(first, n),
                           .logit_rows = wanted,
                           .logits = &of_case},
                          0, std::int64_t(first), *caches[c], *workspace, pool);
        seconds[c] += seconds_since(begin);
        caches[c]->commit(0, std::int64_t(first) + n);
        for (std::size_t i = 0; i < wanted.size(); ++i) {
          rows_of_case[i] = of_case.host_row(int(i)).data();
          if (c == 0) rows_of_reference[i] = rows_of_case[i];
        }
        pool.tasks(int(wanted.size()), [&](int i, int) {
          const float* row = rows_of_reference[i];
          if (c == 0) prepare(row, vocabulary, rows_of_bf16[i]);
          scores[i] = score(rows_of_bf16[i], row, rows_of_case[i], vocabulary,
                            window[first + wanted[i] + 1]);
        });
        std::vector<Sums>& sums = blocks[c][w];
        for (std::size_t i = 0; i < wanted.size(); ++i) {
          if (sums.empty() || sums.back().n == kQualityBlock) sums.emplace_back();
          sums.back().add(scores[i]);
        }
      }
      done += n;
      if (progress) progress(double(done) / double(total));
    }
    if (w == longest) {
      const auto end = std::int64_t(window.size());
      const int wanted = 0;
      const ForwardBatch step{
          .tokens = std::span(window).last(1), .logit_rows = {&wanted, 1}, .logits = logits.get()};
      std::vector<std::vector<double>> times(caches.size());
      for (std::size_t c = 0; c < caches.size(); ++c) {
        results[c].context_tokens = end;
        results[c].allocated_bytes = caches[c]->stats().used_bytes;
        if (!caches[c]->reserve(0, end + 1))
          return Error{ErrorCode::kInternal, "KV quality: its own cache is too small"};
      }
      // The first round warms up; the row is not committed, so the same step is taken each time.
      for (int i = 0; i <= options.timed_steps; ++i) {
        for (std::size_t c = 0; c < caches.size(); ++c) {
          const auto begin = Clock::now();
          model.forward_one(step, 0, end, *caches[c], *workspace, pool);
          if (i > 0) times[c].push_back(seconds_since(begin));
        }
      }
      for (std::size_t c = 0; c < caches.size() && options.timed_steps > 0; ++c)
        results[c].decode_tokens_per_s = 1 / median_step_seconds(times[c]);
    }
    for (const auto& cache : caches) cache->close(0);
  }
  for (std::size_t c = 0; c < cases.size(); ++c) {
    KvQuality& result = results[c];
    result.name = cases[c].name;
    result.mode = cases[c].mode;
    std::vector<Sums> all;
    for (const std::vector<Sums>& window : blocks[c]) {
      result.windows.push_back(figures(window));
      all.insert(all.end(), window.begin(), window.end());
    }
    result.all = figures(all);
    const KvStats stats = caches[c]->stats();
    result.sealed_page_reads = stats.sealed_page_reads_total;
    result.sealed_bytes_per_token =
        cases[c].mode == KvMode::kBf16 ? stats.bytes_per_token_bf16 : stats.bytes_per_token_sealed;
    result.prefill_tokens_per_s = double(total) / seconds[c];
  }
  return results;
}

}  // namespace foretoken
