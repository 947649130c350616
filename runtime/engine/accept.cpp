// accept: the target chooses a token after every row of a path, from the last committed token's on,
// for as long as the draft has a node for its choice.
#include <algorithm>

#include "runtime/engine/core.h"

namespace foretoken {

void EngineCore::accept() {
  for (int i = 0; i < round_.n_entries; ++i) {
    RoundEntry& e = round_.entries[std::size_t(i)];
    e.emitted.clear();
    e.path.clear();
    e.logprobs.clear();
    e.first_report = int(reports_.size());
    if (e.samples) accept_one(e);
    if (round_.has_taps) capture(e);
  }
  pool_->post(logits_->tasks() + (features_ ? features_->tasks() : 0), round_task_);
  tell_logprobs();
}

const DraftTree& EngineCore::draft_of(const RoundEntry& e) const {
  static const DraftTree kNone;  // a prompt's last chunk emits a token without one
  return e.job >= 0 ? round_.jobs[std::size_t(e.job)].draft : kNone;
}

void EngineCore::accept_one(RoundEntry& e) {
  Sequence& s = *e.sequence;
  const SamplingParams& sampling = s.request.sampling;
  const DraftTree& draft = draft_of(e);
  // At T = 0 both rules are one.
  const bool rejection =
      options_.spec_sampling == SpecSampling::kRejection && sampling.temperature > 0;
  int node = -1;  // the draft's, of the row in hand; -1: the last committed token's row
  for (;;) {
    const int row = e.first_logit + node + 1;
    TokenId token = 0;
    int next = -1;  // the node that is accepted
    if (rejection) {
      // The index of the token chosen here.
      const std::uint64_t position = s.tokens.size() + e.emitted.size();
      sampler_->prepare(logits_->host_row(row).data(), sampling, s.counts.get());
      std::uint32_t attempt = 0;
      for (int child = draft.first_child(node); child >= 0 && next < 0;
           child = draft.next_sibling(child)) {
        if (sampler_->accepts(draft.tokens[std::size_t(child)], draft.support_of(child), position,
                              attempt++))
          next = child;
      }
      token = next >= 0 ? draft.tokens[std::size_t(next)] : sampler_->sample(position);
      logits_->chosen(row, token, s.trace ? sampler_->logprob(token) : 0);
    } else {
      token = logits_->token(row);
      next = draft.child(node, token);
    }
    e.path.push_back(node + 1);
    e.emitted.push_back(token);
    if (s.trace || s.request.top_logprobs >= 0) reports_.push_back({&s, row});
    if (s.counts) s.counts->add_output(token);  // the next row counts it as committed
    const auto n = std::ssize(e.emitted);
    const bool ends = s.stops(token) || s.n_generated() + n >= s.request.max_tokens ||
                      std::ssize(s.tokens) + n >= options_.max_model_len;
    if (next >= 0) e.accepted = int(e.emitted.size());
    if (next < 0 || ends) return;
    node = next;
  }
}

void EngineCore::RoundTask::operator()(int i) const {
  const int n_logits = core->logits_->tasks();
  if (i < n_logits)
    core->logits_->run_task(i);
  else
    core->features_->run_task(i - n_logits);
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
      const RowReport& r = logits_->report(reports_[std::size_t(e.first_report) + j].row);
      TokenLogprob& p = e.logprobs.emplace_back();
      p.token = r.token;
      p.logprob = float(double(r.logit) - r.log_sum_exp);
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
  if (reports_.empty()) return;
  pool_->complete();
  for (ReportedRow& reported : reports_) {
    if (sequence && reported.sequence != sequence) continue;
    if (reported.sequence && reported.traced_as >= 0) {
      RowReport& r = logits_->report(reported.row);
      GeneratedTokenTrace& t = reported.sequence->trace->generated[std::size_t(reported.traced_as)];
      t.top_ids = r.top_ids;
      t.top_logits = r.top_values;
      t.log_sum_exp = float(r.log_sum_exp);
      t.logprob = float(r.logprob);
    }
    reported.sequence = nullptr;
  }
  if (!sequence) reports_.clear();
}

}  // namespace foretoken
