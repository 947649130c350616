// accept: the target chooses a token at every row, in order, for as long as its choice is the
// draft's.
#include <algorithm>

#include "foretoken/kernels/sampling.h"
#include "runtime/engine/core.h"

namespace foretoken {

void EngineCore::accept() {
  n_reports_ = 0;
  for (int i = 0; i < round_.n_entries; ++i) {
    RoundEntry& e = round_.entries[std::size_t(i)];
    e.emitted.clear();
    e.logprobs.clear();
    e.traces.clear();
    if (e.samples) accept_one(e);
  }
  report();
}

void EngineCore::accept_one(RoundEntry& e) {
  Sequence& s = *e.sequence;
  const SamplingParams& sampling = s.request.sampling;
  const auto n_vocab = std::size_t(model_->config().n_vocab);
  static const Draft kNoDraft;
  const Draft& draft = e.job >= 0 ? round_.jobs[std::size_t(e.job)].draft : kNoDraft;
  const std::size_t n_draft = draft.tokens.size();
  const bool rejection = options_.spec_sampling == SpecSampling::kRejection;
  const bool reported = s.trace || s.request.top_logprobs >= 0;
  const bool row_changes =
      s.counts || !sampling.logit_bias.empty() || (rejection && sampling.temperature > 0);
  for (std::size_t j = 0; j <= n_draft; ++j) {
    float* logits = &logits_[(std::size_t(e.first_logit) + j) * n_vocab];
    const std::size_t blocks = (std::size_t(e.first_logit) + j) * std::size_t(n_blocks_);
    const float* maxima = &block_maxima_[blocks];
    const std::uint64_t position = s.tokens.size() + j;  // the index of the token chosen here
    RowReport* report = nullptr;
    if (reported) {
      report = &reports_[std::size_t(n_reports_++)];
      report->entry = &e;
      report->raw = logits;
      report->maxima = maxima;
      report->sums = &block_sums_[blocks];
      report->scaled_sums = &block_scaled_sums_[blocks];
      if (row_changes) {
        report->kept.assign(logits, logits + n_vocab);
        report->raw = report->kept.data();
      }
    }
    sampler_->prepare(logits, sampling, s.counts.get(), row_changes ? nullptr : maxima);
    TokenId token = 0;
    bool matches = false;
    if (rejection && j < n_draft) {
      const auto support = j < draft.support.size()
                               ? std::span<const std::pair<TokenId, float>>(draft.support[j])
                               : std::span<const std::pair<TokenId, float>>();
      std::tie(token, matches) = sampler_->sample_rejection(draft.tokens[j], support, position);
    } else {
      token = sampler_->sample(position);
      matches = j < n_draft && token == draft.tokens[j];
    }
    if (options_.fault == EngineFault::kAcceptFirstDraft && j == 0 && n_draft > 0) {
      token = draft.tokens[0];
      matches = true;
    }
    e.emitted.push_back(token);
    if (report) {
      report->token = token;
      report->logprob = 0;
      report->unfiltered = false;
      if (s.trace && sampling.temperature > 0) {
        if (sampler_->filtered() || row_changes)
          report->logprob = sampler_->logprob(token);
        else
          report->unfiltered = true;
      }
    }
    if (s.counts) s.counts->add_output(token);  // the next row counts it as committed
    const bool ends =
        std::ranges::find(s.request.stop_tokens, token) != s.request.stop_tokens.end() ||
        s.n_generated() + std::int64_t(e.emitted.size()) >= s.request.max_tokens ||
        std::int64_t(s.tokens.size() + e.emitted.size()) >= options_.max_model_len;
    if (matches) e.accepted = int(j) + 1;
    if (!matches || ends) return;
  }
}

// What is reported and logged of a row is the model's own distribution, before bias, temperature
// and filters. On all cores, and only of tokens that came.
void EngineCore::report() {
  if (n_reports_ == 0) return;
  const std::int64_t n_vocab = model_->config().n_vocab;
  pool_->tasks(n_reports_, [&](int i, int) {
    RowReport& r = reports_[std::size_t(i)];
    const EngineRequest& request = r.entry->sequence->request;
    r.log_sum_exp = kernels::log_sum_exp_of_blocks(r.maxima, r.sums, n_blocks_, 1.0f);
    const std::int64_t k = r.entry->sequence->trace ? kTeacherTopK : request.top_logprobs;
    r.top_ids.resize(std::size_t(k));
    r.top_values.resize(std::size_t(k));
    const std::int64_t n =
        kernels::top_k(r.raw, n_vocab, k, r.top_ids.data(), r.top_values.data(), r.maxima);
    r.top_ids.resize(std::size_t(n));
    r.top_values.resize(std::size_t(n));
    if (!r.unfiltered) return;
    const float scale = 1.0f / request.sampling.temperature;
    r.logprob = double(r.raw[r.token] * scale) -
                kernels::log_sum_exp_of_blocks(r.maxima, r.scaled_sums, n_blocks_, scale);
  });
  for (int i = 0; i < n_reports_; ++i) {
    const RowReport& r = reports_[std::size_t(i)];
    const Sequence& s = *r.entry->sequence;
    if (s.trace) {
      GeneratedTokenTrace& t = r.entry->traces.emplace_back();
      t.top_ids = r.top_ids;
      t.top_logits = r.top_values;
      t.log_sum_exp = float(r.log_sum_exp);
      t.logprob = float(r.logprob);
    }
    if (s.request.top_logprobs >= 0) {
      TokenLogprob& p = r.entry->logprobs.emplace_back();
      p.token = r.token;
      p.logprob = float(double(r.raw[r.token]) - r.log_sum_exp);
      const auto n = std::min(r.top_ids.size(), std::size_t(s.request.top_logprobs));
      for (std::size_t k = 0; k < n; ++k)
        p.top.emplace_back(r.top_ids[k], float(double(r.top_values[k]) - r.log_sum_exp));
    }
  }
}

}  // namespace foretoken
