// accept: the target chooses a token after every row of a path, from the last committed token's on,
// for as long as the draft has a node for its choice.
#include <algorithm>

#include "foretoken/kernels/sampling.h"
#include "runtime/engine/core.h"

namespace foretoken {

void EngineCore::accept() {
  n_reports_ = 0;
  for (int i = 0; i < round_.n_entries; ++i) {
    RoundEntry& e = round_.entries[std::size_t(i)];
    e.emitted.clear();
    e.path.clear();
    e.logprobs.clear();
    e.first_report = n_reports_;
    if (e.samples) accept_one(e);
    if (round_.has_taps) capture(e);
  }
  pool_->post(n_reports_ + int(features_.size()), round_task_);
  tell_logprobs();
}

void EngineCore::accept_one(RoundEntry& e) {
  Sequence& s = *e.sequence;
  const SamplingParams& sampling = s.request.sampling;
  const auto n_vocab = std::size_t(model_->config().n_vocab);
  static const DraftTree kNoDraft;
  const DraftTree& draft = e.job >= 0 ? round_.jobs[std::size_t(e.job)].draft : kNoDraft;
  const bool rejection = options_.spec_sampling == SpecSampling::kRejection;
  const bool reported = s.trace || s.request.top_logprobs >= 0;
  const bool row_changes =
      s.counts || !sampling.logit_bias.empty() || (rejection && sampling.temperature > 0);
  int node = -1;  // the draft's, of the row in hand; -1: the last committed token's row
  for (;;) {
    const auto row = std::size_t(e.first_logit + node + 1);
    float* logits = &logits_[row * n_vocab];
    const std::size_t blocks = row * std::size_t(n_blocks_);
    const float* maxima = &block_maxima_[blocks];
    // The index of the token chosen here.
    const std::uint64_t position = s.tokens.size() + e.emitted.size();
    RowReport* report = nullptr;
    if (reported) {
      report = &reports_[std::size_t(n_reports_++)];
      report->sequence = &s;
      report->k = s.trace ? kTeacherTopK : s.request.top_logprobs;
      report->traced_as = -1;
      report->temperature = sampling.temperature;
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
    int next = -1;  // the node that is accepted
    if (rejection) {
      std::uint32_t attempt = 0;
      for (int child = draft.first_child(node); child >= 0 && next < 0;
           child = draft.next_sibling(child)) {
        if (sampler_->accepts(draft.tokens[std::size_t(child)], draft.support_of(child), position,
                              attempt++))
          next = child;
      }
    }
    TokenId token = next >= 0 ? draft.tokens[std::size_t(next)] : sampler_->sample(position);
    if (!rejection) next = draft.child(node, token);
    if (options_.fault == EngineFault::kAcceptFirstDraft && node < 0 && !draft.empty()) {
      token = draft.tokens[0];
      next = 0;
    }
    e.path.push_back(node + 1);
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
    if (next >= 0) e.accepted = int(e.emitted.size());
    if (next < 0 || ends) return;
    node = next;
  }
}

// What is reported and logged of a row is the model's own distribution, before bias, temperature
// and filters.
void RowReport::fill(std::int64_t n_vocab, std::int64_t n_blocks) {
  log_sum_exp = kernels::log_sum_exp_of_blocks(maxima, sums, n_blocks, 1.0f);
  top_ids.resize(std::size_t(k));
  top_values.resize(std::size_t(k));
  const std::int64_t n = kernels::top_k(raw, n_vocab, k, top_ids.data(), top_values.data(), maxima);
  top_ids.resize(std::size_t(n));
  top_values.resize(std::size_t(n));
  if (!unfiltered) return;
  const float scale = 1.0f / temperature;
  logprob = double(raw[token] * scale) -
            kernels::log_sum_exp_of_blocks(maxima, scaled_sums, n_blocks, scale);
}

void EngineCore::RoundTask::operator()(int i) const {
  if (i < core->n_reports_)
    core->reports_[std::size_t(i)].fill(core->model_->config().n_vocab, core->n_blocks_);
  else
    core->encode(core->features_[std::size_t(i - core->n_reports_)]);
}

// A client that asked for log probabilities gets them with its tokens: those are waited for.
void EngineCore::tell_logprobs() {
  bool completed = false;
  for (int i = 0; i < round_.n_entries; ++i) {
    RoundEntry& e = round_.entries[std::size_t(i)];
    const int wanted = e.sequence->request.top_logprobs;
    if (wanted < 0) continue;
    if (!completed) pool_->complete();
    completed = true;
    for (std::size_t j = 0; j < e.emitted.size(); ++j) {
      const RowReport& r = reports_[std::size_t(e.first_report) + j];
      TokenLogprob& p = e.logprobs.emplace_back();
      p.token = r.token;
      p.logprob = float(double(r.raw[r.token]) - r.log_sum_exp);
      const auto n = std::min(r.top_ids.size(), std::size_t(wanted));
      for (std::size_t k = 0; k < n; ++k)
        p.top.emplace_back(r.top_ids[k], float(double(r.top_values[k]) - r.log_sum_exp));
    }
  }
}

// Moves what is reported of committed tokens into their traces: of one sequence, before its trace
// goes anywhere, or of all, before the next round's logits are written.
void EngineCore::settle_reports(Sequence* sequence) {
  settle_features();
  if (n_reports_ == 0) return;
  pool_->complete();
  for (int i = 0; i < n_reports_; ++i) {
    RowReport& r = reports_[std::size_t(i)];
    if (sequence && r.sequence != sequence) continue;
    if (r.sequence && r.traced_as >= 0) {
      GeneratedTokenTrace& t = r.sequence->trace->generated[std::size_t(r.traced_as)];
      t.top_ids = std::move(r.top_ids);
      t.top_logits = std::move(r.top_values);
      t.log_sum_exp = float(r.log_sum_exp);
      t.logprob = float(r.logprob);
    }
    r.sequence = nullptr;
  }
  if (!sequence) n_reports_ = 0;
}

}  // namespace foretoken
