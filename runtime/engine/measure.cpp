// measure: whose round it was, for the probe; captures that a plain window ends; traffic that is
// kept.

#include "runtime/engine/core.h"

namespace foretoken {

// A window of plain serving has begun: what was captured so far is a whole trace of a shorter
// request; a request that had emitted next to nothing leaves none.
void EngineCore::end_captures() {
  constexpr std::size_t kLeastRounds = 8;
  settle_reports();
  for (auto& s : running_) {
    if (!s->trace) continue;
    probe_->add(&EngineStats::traces_plain_window);
    if (s->trace->rounds.size() >= kLeastRounds)
      hand_in_trace(*s);
    else
      s->trace.reset();
  }
}

void EngineCore::hand_in_trace(Sequence& s) {
  s.trace->tokens = s.tokens;
  s.trace->unix_ms = clock_.unix_ms();
  trace_sink_(std::move(s.trace));
}

// Whose round it was, before its sequences move on.
ProbedRound EngineCore::probed() const {
  ProbedRound p;
  p.comparable = !plan_.has_prefill;
  p.plain = round_.plain;
  std::optional<int> domain, version;
  std::optional<SpeculatorKind> kind;
  bool one_kind = true;
  const auto agree = [](std::optional<int>& all, int one) { all = !all || *all == one ? one : -1; };
  for (int i = 0; i < round_.n_entries; ++i) {
    const RoundEntry& e = round_.entries[std::size_t(i)];
    if (!e.decode) continue;
    p.comparable &= e.sequence->request.speculation;
    agree(domain, e.sequence->domain);
    agree(version, version_label(*e.sequence));
    for (const SpeculatorKind k : round_.jobs[std::size_t(e.job)].draft.kinds) {
      one_kind &= !kind || *kind == k;
      kind = k;
    }
  }
  p.domain = domain.value_or(-1);
  p.version = version.value_or(-1);
  if (one_kind) p.kind = kind;
  return p;
}

std::vector<SavedTraffic> EngineCore::save_traffic() const {
  std::vector<SavedTraffic> saved;
  const TrafficStores& stores = portfolio_->sources().stores();
  const std::vector<std::string> keys = stores.keys();
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (stores.at(int(i)).entries() > 0) saved.push_back({keys[i], stores.at(int(i)).save()});
  }
  return saved;
}

std::vector<Error> EngineCore::restore_traffic(const std::vector<SavedTraffic>& saved) {
  std::vector<Error> errors;
  TrafficStores& stores = portfolio_->sources().stores();
  for (const SavedTraffic& s : saved) {
    const int store = stores.acquire(s.key_id);
    if (auto status = stores.at(store).restore(s.bytes, model_->config().n_vocab); !status)
      errors.push_back(status.error());
    stores.release(store);
  }
  return errors;
}

}  // namespace foretoken
