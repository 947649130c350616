// verify: one forward pass over every decoding sequence's last token and draft, and over prefill
// chunks.
#include <algorithm>

#include "foretoken/kernels/sampling.h"
#include "runtime/engine/core.h"

namespace foretoken {

void EngineCore::verify() {
  Round& r = round_;
  const auto begin = std::chrono::steady_clock::now();
  r.tokens.clear();
  r.groups.clear();
  r.logit_rows.clear();
  for (int i = 0; i < r.n_entries; ++i) {
    RoundEntry& e = r.entries[std::size_t(i)];
    const DraftTree& draft = r.jobs[std::size_t(e.job)].draft;
    e.first_row = int(r.tokens.size());
    e.n_rows = 1 + draft.size();
    e.first_logit = int(r.logit_rows.size());
    r.tokens.push_back(e.sequence->tokens.back());
    r.tokens.insert(r.tokens.end(), draft.tokens.begin(), draft.tokens.end());
    for (int row = 0; row < e.n_rows; ++row) r.logit_rows.push_back(e.first_row + row);
    r.groups.push_back({e.sequence->kv, e.sequence->computed, e.n_rows, e.first_row,
                        draft.is_chain() ? nullptr : draft.parents.data()});
  }
  // Prefill chunks share what is left, first come first served. A sequence that was preempted
  // recomputes everything but its last token, which then decodes as if nothing had happened.
  for (std::size_t i = 0; i < running_.size(); ++i) {
    Sequence& s = *running_[i];
    if (s.decoding()) continue;
    const std::int64_t room = options_.max_batch_rows - std::int64_t(r.tokens.size());
    const std::int64_t n = std::min(room, s.prefill_end() - s.computed);
    if (n <= 0) break;
    // Only sequences younger than this one may lose their pages, and none of those has rows yet...
    // unless it decodes: then this one waits for the next round instead.
    if (!kv_->reserve(s.kv, s.computed + n)) {
      if (r.n_entries > 0) continue;
      if (!make_room(s, s.computed + n)) break;
    }
    RoundEntry& e = r.entries[std::size_t(r.n_entries++)];
    e.sequence = &s;
    e.decode = false;
    e.samples = s.n_generated() == 0 && s.computed + n == s.n_prompt;
    e.job = -1;
    e.accepted = 0;
    e.first_row = int(r.tokens.size());
    e.n_rows = int(n);
    e.first_logit = int(r.logit_rows.size());
    r.tokens.insert(r.tokens.end(), s.tokens.begin() + s.computed,
                    s.tokens.begin() + s.computed + n);
    if (e.samples) r.logit_rows.push_back(e.first_row + e.n_rows - 1);
    r.groups.push_back({s.kv, s.computed, e.n_rows, e.first_row});
  }
  settle_reports();
  if (!r.tokens.empty()) {
    ForwardBatch batch;
    batch.tokens = r.tokens;
    batch.sequences = r.groups;
    batch.logit_rows = r.logit_rows;
    batch.logits = logits_.data();
    kernels::LogitSummary summary;
    summary.maxima = block_maxima_.data();
    summary.stride = n_blocks_;
    for (int i = 0; i < r.n_entries; ++i) {
      const RoundEntry& e = r.entries[std::size_t(i)];
      const Sequence& s = *e.sequence;
      if (s.trace || s.request.top_logprobs >= 0) summary.sums = block_sums_.data();
      const float temperature = s.request.sampling.temperature;
      const bool scaled = s.trace && temperature > 0;
      if (scaled) summary.scaled_sums = block_scaled_sums_.data();
      const int n = e.decode ? e.n_rows : int(e.samples);
      std::fill_n(row_scales_.begin() + e.first_logit, n, scaled ? 1 / temperature : 0.0f);
    }
    summary.scales = row_scales_.data();
    batch.summary = &summary;
    // A few copies of hidden states, and the final norm of every row: only when somebody reads
    // them.
    r.has_taps = false;
    for (int i = 0; i < r.n_entries; ++i)
      r.has_taps |= wants_features(*r.entries[std::size_t(i)].sequence);
    if (r.has_taps) {
      batch.taps = taps_;
      batch.tap_values = tap_values_.data();
    }
    model_->forward(batch, *kv_, *workspace_, *pool_);
    if (options_.fault == EngineFault::kBatchDependentKernel) {
      // As if the order of summation followed the number of rows.
      const std::size_t n = r.logit_rows.size() * std::size_t(model_->config().n_vocab);
      for (std::size_t i = 0; i < n; ++i)
        logits_[i] *= 1.0f + 2e-3f * float((i * r.tokens.size()) % 7);
      const auto n_vocab = model_->config().n_vocab;
      for (std::size_t row = 0; row < r.logit_rows.size(); ++row) {
        const std::size_t at = row * std::size_t(n_blocks_);
        kernels::logit_block_summary(&logits_[row * std::size_t(n_vocab)], n_vocab,
                                     &block_maxima_[at], &block_sums_[at], row_scales_[row],
                                     &block_scaled_sums_[at]);
      }
    }
  }
  r.verify_ms =
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace foretoken
