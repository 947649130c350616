// admit and plan: which sequences run, and what this round decodes of them.
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
  for_each_sequence([&](Sequence& s) {
    if (s.request.id == id) s.ends = reason;
  });
}

void EngineCore::abort_all() {
  for_each_sequence([](Sequence& s) { s.ends = FinishReason::kAborted; });
  admit();
}

void EngineCore::admit() {
  for_each_sequence([&](Sequence& s) {
    if (s.ends) finish(s, *s.ends, {});
  });
  remove_finished();
  while (!waiting_.empty()) {
    const auto slot = std::find(slot_used_.begin(), slot_used_.end(), false);
    if (slot == slot_used_.end()) return;
    Sequence& s = *waiting_.front();
    // A first chunk must fit without taking pages from anybody; the rest may preempt later.
    const auto kv = memory_->open();
    if (!kv) return;
    // At least one row is computed, whatever is known: it has the logits, or the features from
    // which the head drafts.
    s.kv = *kv;
    s.memory = memory_.get();
    if (!s.chain.empty()) memory_->resume(s.kv, s.chain, s.n_prompt, s.prefill_end() - 1);
    const std::int64_t first = first_length(std::int64_t(s.tokens.size()), s.computed(), limits_);
    if (!memory_->reserve(s.kv, first) && !running_.empty()) {
      memory_->close(s.kv);
      s.kv = -1;
      return;
    }
    s.slot = int(slot - slot_used_.begin());
    *slot = true;
    if (s.trace) skip_taps(*s.trace, s.computed());
    if (!s.preempted) {
      s.timings.cached_n = s.computed();
      probe_->add(&EngineStats::prefix_cache_queries, s.n_prompt);
      probe_->add(&EngineStats::prefix_cache_hits, s.computed());
      s.admitted = now();
      s.timings.queue_ms = ms_of(s.admitted - s.submitted);
    }
    s.store =
        portfolio_->acquire_store(options_.share_across_keys ? std::string() : s.request.key_id);
    s.learned = learned_.of(s.request.id).get();
    s.domain = probe_->domain(s.request.domain);
    reserve(s);
    portfolio_->open(context_of(s));
    if (s.trace) restore_features(s);
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

// What its rounds will fill: nothing is allocated while it runs.
void EngineCore::reserve(Sequence& s) {
  const bool reported = s.trace || s.request.top_logprobs >= 0;
  const bool rejection =
      options_.spec_sampling == SpecSampling::kRejection && s.request.sampling.temperature > 0;
  if (reported && (s.counts || !s.request.sampling.logit_bias.empty() || rejection))
    logits_->keep_changed_rows();
  if (!s.trace) return;
  RequestTrace& trace = *s.trace;
  const auto generated = std::size_t(s.request.max_tokens);
  trace.generated.reserve(generated);
  trace.rounds.reserve(generated);
  trace.policy.reserve(generated, std::size_t(options_.max_num_seqs),
                       std::size_t(options_.spec_draft_n_max) + 2);
  const auto positions = std::size_t(s.n_prompt - trace.tap_first) + generated;
  trace.tap_scales.reserve(positions * kHeadTaps);
  trace.tap_values.reserve(positions * kHeadTaps * std::size_t(trace.tap_width));
}

void EngineCore::preempt(Sequence& s) {
  memory_->close(s.kv);
  portfolio_->close(context_of(s), false, false);
  slot_used_[std::size_t(s.slot)] = false;
  s.kv = s.slot = -1;
  s.preempted = true;
  probe_->add(&EngineStats::preemptions);
  const auto it =
      std::find_if(running_.begin(), running_.end(), [&](const auto& p) { return p.get() == &s; });
  waiting_.push_front(std::move(*it));
  running_.erase(it);
}

bool EngineCore::Pages::reserve(std::size_t sequence, std::int64_t length) {
  return core.memory_->reserve(core.running_[sequence]->kv, length);
}

void EngineCore::Pages::preempt(std::size_t youngest) { core.preempt(*core.running_[youngest]); }

void EngineCore::plan() {
  states_.clear();
  for (const auto& s : running_) {
    const auto n = std::int64_t(s->tokens.size());
    states_.push_back(
        {.tokens = n,
         .computed = s->computed(),
         .prefill_end = s->prefill_end(),
         .may_come = std::min(s->request.max_tokens - s->n_generated(), options_.max_model_len - n),
         .decodes = s->decoding(),
         .drafts = s->request.speculation});
  }
  Pages pages(*this);
  plan_decode(states_, limits_, pages, plan_);
  Round& r = round_;
  r.n_entries = r.n_jobs = 0;
  for (const RoundSchedule::Decode& planned : plan_.decode) {
    RoundEntry& e = r.entries[std::size_t(r.n_entries++)];
    e.sequence = running_[planned.sequence].get();
    e.decode = e.samples = true;
    e.accepted = 0;
    e.job = r.n_jobs++;
    DraftJob& job = r.jobs[std::size_t(e.job)];
    job.context = context_of(*e.sequence);
    job.max_tokens = planned.max_draft;
    job.draft.clear();
  }
}

}  // namespace foretoken
