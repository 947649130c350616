// commit: accepted tokens become history: the KV's, the speculators', the trace's and the client's.
#include <algorithm>

#include "runtime/engine/core.h"

namespace foretoken {

void EngineCore::commit() {
  Round& r = round_;
  probe_->add(&EngineStats::engine_rounds);
  if (r.control) probe_->add(&EngineStats::control_rounds);
  RoundMeasurement m;
  ProbedRound p = probed();
  std::int64_t context = 0;
  for (int i = 0; i < r.n_entries; ++i) {
    const RoundEntry& e = r.entries[std::size_t(i)];
    if (!e.decode) continue;
    const auto length = std::int64_t(e.sequence->tokens.size());
    ++m.sequences;
    m.rows += e.n_rows;
    m.work += double(e.n_rows) * double(length) / 1000.0;
    m.emitted += int(e.emitted.size());
    context += length;
  }
  for (int i = 0; i < r.n_entries; ++i) commit_one(r.entries[std::size_t(i)]);
  remove_finished();

  const SteadyTime now = this->now();
  const double round_ms = ms_of(now - r.started);
  if (m.sequences == 0) return;
  m.prefill_rows = int(r.tokens.size()) - m.rows;
  m.verify_ms = round_ms - r.draft_ms;
  m.control = r.control || r.plain;
  portfolio_->measured(m);
  p.cost.sequences = m.sequences;
  p.cost.context = double(context) / m.sequences;
  p.cost.tokens = m.emitted;
  p.cost.ms = round_ms;
  p.cost.control = r.control;
  p.cost.probability = coin_.fraction();
  probe_->round(now, p);
}

void EngineCore::commit_one(RoundEntry& e) {
  Sequence& s = *e.sequence;
  Round& r = round_;
  const SteadyTime now = this->now();
  if (!e.samples) {  // a prefill chunk that ends inside what is already known
    memory_->commit(s.kv, s.computed() + e.n_rows);
    return;
  }
  DraftOutcome outcome;
  outcome.context = context_of(s);
  outcome.emitted = e.emitted;
  outcome.accepted = e.accepted;
  if (!e.decode) {
    s.timings.prompt_n = s.n_prompt - s.timings.cached_n;
    s.timings.prompt_ms = ms_of(now - s.admitted);
    s.decode_started = now;
    probe_->add(&EngineStats::prompt_tokens, s.n_prompt);
  }

  const std::size_t before = s.tokens.size();
  s.tokens.insert(s.tokens.end(), e.emitted.begin(), e.emitted.end());
  // The first token came with the prompt: the speculators see it as an outcome without a draft.
  const DraftTree& draft = draft_of(e);
  if (!draft.is_chain()) memory_->keep_path(s.kv, s.computed(), e.path);
  memory_->commit(s.kv, e.decode ? std::int64_t(before + e.emitted.size()) - 1 : s.n_prompt);
  outcome.context.tokens = std::span(s.tokens).first(before);
  outcome.draft = &draft;
  if (e.decode && s.trace) portfolio_->record_policy(s.slot, s.trace->policy);
  portfolio_->observe(outcome);
  if (e.decode) {
    AcceptanceStats a;
    a.rounds = 1;
    a.emitted = std::int64_t(e.emitted.size());
    a.drafting_rounds = draft.empty() ? 0 : 1;
    a.drafted = draft.size();
    a.accepted = e.accepted;
    for (int node = 0; node < draft.size(); ++node) {
      const auto depth = std::size_t(draft.depth(node));
      a.drafted_at[depth] = 1;
      a.accepted_at[depth] = int(depth) < e.accepted ? 1 : 0;
    }
    std::optional<SpeculatorKind> kind;
    if (a.drafting_rounds) kind = draft.kinds[0];
    probe_->decoded(now, s.domain, version_label(s), kind, a);
    s.timings.draft_n += a.drafted;
    s.timings.draft_n_accepted += a.accepted;
    s.timings.drafting_rounds += a.drafting_rounds;
    ++s.timings.rounds;
  }
  if (s.trace) {
    RequestTrace& trace = *s.trace;
    const std::span<const CandidateList> logged = portfolio_->logged(s.slot);
    for (std::size_t j = 0; j < e.emitted.size(); ++j) {
      reports_[std::size_t(e.first_report) + j].traced_as = std::int64_t(trace.generated.size());
      trace.generated.emplace_back().candidates = logged[logged.size() - e.emitted.size() + j];
    }
    if (e.decode) {
      RoundTrace& round = trace.rounds.emplace_back();
      round.start = std::int32_t(before);
      round.drafted = draft.tokens;
      if (!draft.is_chain()) round.parents = draft.parents;
      round.confidences = draft.confidences;
      round.kinds = draft.kinds;
      round.accepted = e.accepted;
      round.version = s.learned->version;
      round.draft_ms = float(r.draft_ms);
      round.verify_ms = float(r.verify_ms);
      round.rows = std::int32_t(r.tokens.size());
      round.control = r.control;
    }
  }
  probe_->add(&EngineStats::generated_tokens, std::int64_t(e.emitted.size()));
  s.timings.predicted_n = s.n_generated();
  s.timings.predicted_ms = ms_of(now - s.decode_started);
  s.timings.speculator_version = s.learned->version.value;

  EngineEvent event;
  event.request = s.request.id;
  event.choice = s.request.choice;
  const TokenId last = s.tokens.back();
  const bool stopped = s.stops(last);
  const bool full = s.n_generated() >= s.request.max_tokens ||
                    std::int64_t(s.tokens.size()) >= options_.max_model_len;
  event.tokens.assign(e.emitted.begin(), e.emitted.end() - (stopped ? 1 : 0));
  event.logprobs = std::move(e.logprobs);
  if (stopped && !event.logprobs.empty()) event.logprobs.pop_back();
  if (stopped) event.stop_token = last;
  if (stopped || full) {
    finish(s, stopped ? FinishReason::kStop : FinishReason::kLength, std::move(event));
    return;
  }
  event.timings = s.timings;
  s.request.sink(std::move(event));
}

// Ends a sequence: its pages are free when this returns; remove_finished() drops it from the lists.
void EngineCore::finish(Sequence& s, FinishReason reason, EngineEvent&& last) {
  const bool whole = reason == FinishReason::kStop || reason == FinishReason::kLength;
  if (s.slot >= 0) {
    const bool keeps = whole && s.keeps_pages && !s.chain.empty();
    if (keeps) {
      s.chain.extend(s.tokens);
      memory_->close_and_keep(s.kv, s.chain);
    } else {
      memory_->close(s.kv);
    }
    DraftContext context = context_of(s);
    if (!keeps) context.chain = nullptr;
    portfolio_->close(context, whole, whole && s.request.trace);
    slot_used_[std::size_t(s.slot)] = false;
    s.slot = s.kv = -1;
  }
  probe_->add(whole ? &EngineStats::requests_finished : &EngineStats::requests_aborted);
  if (s.trace) settle_reports(&s);
  if (s.trace && whole && trace_sink_) hand_in_trace(s);
  last.request = s.request.id;
  last.choice = s.request.choice;
  last.finish = reason;
  last.timings = s.timings;
  s.request.sink(std::move(last));
  s.finished = true;
}

void EngineCore::remove_finished() {
  auto done = [](const std::unique_ptr<Sequence>& s) { return s->finished; };
  std::erase_if(running_, done);
  std::erase_if(waiting_, done);
}

}  // namespace foretoken
