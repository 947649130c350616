// admit and plan: which sequences run, and which rows this round computes.
#include <algorithm>

#include "runtime/engine/core.h"

namespace foretoken {
namespace {

// Taps are of consecutive positions: where a prefix hit leaves some out, they begin after it.
// (Those of a generated token are there: only a prompt that was preempted before its end can have a
// gap.)
void skip_taps(RequestTrace& trace, std::int64_t position) {
  if (position <= trace.tap_first + trace.tap_positions()) return;
  trace.tap_values.clear();
  trace.tap_scales.clear();
  trace.tap_first = std::int32_t(position);
}

}  // namespace

void EngineCore::enqueue(std::unique_ptr<Sequence> sequence) {
  waiting_.push_back(std::move(sequence));
}

void EngineCore::end(RequestId id, FinishReason reason) {
  for (auto& s : running_) {
    if (s->request.id == id) s->ends = reason;
  }
  for (auto& s : waiting_) {
    if (s->request.id == id) s->ends = reason;
  }
}

void EngineCore::abort_all() {
  for (auto& s : running_) s->ends = FinishReason::kAborted;
  for (auto& s : waiting_) s->ends = FinishReason::kAborted;
  admit();
}

void EngineCore::admit() {
  for (auto& s : running_) {
    if (s->ends) finish(*s, *s->ends, {});
  }
  for (auto& s : waiting_) {
    if (s->ends) finish(*s, *s->ends, {});
  }
  remove_finished();
  while (!waiting_.empty()) {
    const auto slot = std::find(slot_used_.begin(), slot_used_.end(), false);
    if (slot == slot_used_.end()) return;
    Sequence& s = *waiting_.front();
    // A first chunk must fit without taking pages from anybody; the rest may preempt later.
    const auto kv = kv_->open();
    if (!kv) return;
    // At least one row is computed, whatever is known: it has the logits, or the features from
    // which the head drafts.
    s.computed = 0;
    if (!s.chain.empty()) s.computed = kv_->resume(*kv, s.chain, s.n_prompt, s.prefill_end() - 1);
    const std::int64_t first = std::min<std::int64_t>(std::int64_t(s.tokens.size()) + 1,
                                                      s.computed + options_.max_batch_rows);
    if (!kv_->reserve(*kv, first) && !running_.empty()) {
      kv_->close(*kv);
      return;
    }
    s.kv = *kv;
    s.slot = int(slot - slot_used_.begin());
    *slot = true;
    if (s.trace) skip_taps(*s.trace, s.computed);
    if (!s.preempted) {
      s.timings.cached_n = s.computed;
      stats_.prefix_cache_queries += s.n_prompt;
      stats_.prefix_cache_hits += s.computed;
      s.admitted = std::chrono::steady_clock::now();
      s.timings.queue_ms =
          std::chrono::duration<double, std::milli>(s.admitted - s.submitted).count();
    }
    s.store =
        portfolio_->acquire_store(options_.share_across_keys ? std::string() : s.request.key_id);
    s.learned = learned_.of(s.request.id).get();
    portfolio_->open(context_of(s));
    if (s.trace) restore_features(s);
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

void EngineCore::preempt(Sequence& s) {
  kv_->close(s.kv);
  portfolio_->close(context_of(s), false, false);
  slot_used_[std::size_t(s.slot)] = false;
  s.kv = s.slot = -1;
  s.computed = 0;
  s.preempted = true;
  ++stats_.preemptions;
  const auto it =
      std::find_if(running_.begin(), running_.end(), [&](const auto& p) { return p.get() == &s; });
  waiting_.push_front(std::move(*it));
  running_.erase(it);
}

// Makes room by preempting younger sequences. False: nothing younger is left, and `sequence` itself
// has been preempted (only possible while an older one runs: no request is longer than what the
// whole pool holds).
bool EngineCore::make_room(Sequence& sequence, std::int64_t length) {
  while (!kv_->reserve(sequence.kv, length)) {
    Sequence& youngest = *running_.back();
    const bool self = &youngest == &sequence;
    preempt(youngest);
    if (self) return false;
  }
  return true;
}

void EngineCore::plan() {
  Round& r = round_;
  r.n_entries = r.n_jobs = 0;
  r.has_prefill = false;
  std::int64_t prefill_left = 0;
  // Decoding sequences first; room for their longest draft, so that drafting cannot fail later.
  for (std::size_t i = 0; i < running_.size(); ++i) {
    Sequence& s = *running_[i];
    if (!s.decoding()) {
      r.has_prefill = true;
      prefill_left += std::int64_t(s.tokens.size()) - s.computed;
      continue;
    }
    const std::int64_t left = std::min(std::int64_t(s.request.max_tokens) - s.n_generated(),
                                       options_.max_model_len - std::int64_t(s.tokens.size()));
    const bool drafts = s.request.speculation && options_.spec_draft_n_max > 0;
    const int n_max =
        drafts ? int(std::clamp<std::int64_t>(left - 1, 0, options_.spec_draft_n_max)) : 0;
    if (!make_room(s, std::int64_t(s.tokens.size()) + n_max))
      continue;  // may shorten running_, never before i
    RoundEntry& e = r.entries[std::size_t(r.n_entries++)];
    e.sequence = &s;
    e.decode = e.samples = true;
    e.accepted = 0;
    e.job = r.n_jobs++;
    DraftJob& job = r.jobs[std::size_t(e.job)];
    job.context = context_of(s);
    job.max_tokens = n_max;
    job.draft.clear();
  }
  const std::int64_t free_rows =
      options_.max_batch_rows - std::int64_t(r.n_jobs) * (1 + options_.spec_draft_n_max);
  r.prefill_rows = int(std::min(prefill_left, free_rows));
}

}  // namespace foretoken
