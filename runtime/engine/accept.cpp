// accept: the target chooses a token at every row, in order, for as long as its choice is the
// draft's.
#include <algorithm>

#include "foretoken/kernels/sampling.h"
#include "runtime/engine/core.h"

namespace foretoken {

void EngineCore::accept() {
  for (int i = 0; i < round_.n_entries; ++i) {
    RoundEntry& e = round_.entries[std::size_t(i)];
    e.emitted.clear();
    e.logprobs.clear();
    e.traces.clear();
    if (e.samples) accept_one(e);
  }
}

void EngineCore::accept_one(RoundEntry& e) {
  Sequence& s = *e.sequence;
  const std::int64_t n_vocab = model_->config().n_vocab;
  static const Draft kNoDraft;
  const Draft& draft = e.job >= 0 ? round_.jobs[std::size_t(e.job)].draft : kNoDraft;
  const std::size_t n_draft = draft.tokens.size();
  const bool rejection = options_.spec_sampling == SpecSampling::kRejection;
  for (std::size_t j = 0; j <= n_draft; ++j) {
    float* logits = &logits_[(std::size_t(e.first_logit) + j) * std::size_t(n_vocab)];
    const std::uint64_t position = s.tokens.size() + j;  // the index of the token chosen here
    // What is reported and logged is the model's own distribution: before bias, temperature and
    // filters.
    const bool wants_top = s.trace || s.request.top_logprobs >= 0;
    double lse = 0;
    std::int64_t n_top = 0;
    if (wants_top) {
      lse = kernels::log_sum_exp(logits, n_vocab, 1.0f);
      n_top = kernels::top_k(logits, n_vocab, s.trace ? kTeacherTopK : s.request.top_logprobs,
                             top_ids_.data(), top_values_.data());
    }
    std::vector<float> raw_of_interest;
    // Penalties and bias change the row: keep what logprobs need.
    if (s.request.top_logprobs >= 0 && (s.counts || !s.request.sampling.logit_bias.empty())) {
      raw_of_interest.assign(logits, logits + n_vocab);
    }
    sampler_->prepare(logits, s.request.sampling, s.counts.get());
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
    if (s.trace) {
      GeneratedTokenTrace& t = e.traces.emplace_back();
      t.top_ids.assign(top_ids_.begin(), top_ids_.begin() + n_top);
      t.top_logits.assign(top_values_.begin(), top_values_.begin() + n_top);
      t.log_sum_exp = float(lse);
      t.logprob = s.request.sampling.temperature == 0 ? 0.0f : float(sampler_->logprob(token));
    }
    if (s.request.top_logprobs >= 0) {
      TokenLogprob& p = e.logprobs.emplace_back();
      p.token = token;
      const float* raw = raw_of_interest.empty() ? logits : raw_of_interest.data();
      p.logprob = float(double(raw[token]) - lse);
      for (std::int64_t k = 0; k < std::min<std::int64_t>(n_top, s.request.top_logprobs); ++k) {
        p.top.emplace_back(top_ids_[std::size_t(k)],
                           float(double(top_values_[std::size_t(k)]) - lse));
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

}  // namespace foretoken
