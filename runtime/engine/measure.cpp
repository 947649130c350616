// measure: what a round says of the speedup, gross and net, and what a swap cost.
#include <algorithm>

#include "runtime/engine/core.h"

namespace foretoken {

// A window of plain serving has begun: what was captured so far is a whole trace of a shorter
// request; a request that had emitted next to nothing leaves none.
void EngineCore::end_captures() {
  constexpr std::size_t kLeastRounds = 8;
  settle_reports();
  for (auto& s : running_) {
    if (!s->trace) continue;
    ++stats_.traces_plain_window;
    if (s->trace->rounds.size() >= kLeastRounds)
      hand_in_trace(*s);
    else
      s->trace.reset();
  }
}

void EngineCore::hand_in_trace(Sequence& s) {
  s.trace->tokens = s.tokens;
  s.trace->unix_ms = clock_->unix_ms();
  trace_sink_(std::move(s.trace));
}

void EngineCore::measure(const SpeedupRound& round, bool comparable, const std::string& domain) {
  if (!comparable || options_.spec_draft_n_max == 0) return;
  const double now_s = std::chrono::duration<double>(now().time_since_epoch()).count();
  windows_->record(now_s, round.sequences, round.tokens, round.ms);
  if (round_.plain || options_.control_fraction <= 0) return;
  const int label = domain.empty() ? -1 : speedup_.label(domain);
  speedup_.record(round, now_s, std::span(&label, label >= 0 ? 1 : 0));

  // Who drafted: one kind throughout, one version throughout, or nobody in particular.
  std::optional<SpeculatorKind> kind;
  std::optional<std::uint64_t> version;
  bool one_kind = true, one_version = true;
  for (int i = 0; i < round_.n_entries; ++i) {
    const RoundEntry& e = round_.entries[std::size_t(i)];
    if (!e.decode) continue;
    one_version &= !version || *version == e.version;
    version = e.version;
    for (const SpeculatorKind k : round_.jobs[std::size_t(e.job)].draft.kinds) {
      one_kind &= !kind || *kind == k;
      kind = k;
    }
  }
  if (round.control) {
    for (SpeedupSums& sums : speedup_by_kind_) sums.record(round);
  } else if (kind && one_kind) {
    speedup_by_kind_[std::size_t(*kind)].record(round);
  }
  if (!version || !one_version) return;
  auto found = std::ranges::find(speedup_by_version_, *version,
                                 &std::pair<std::uint64_t, SpeedupSums>::first);
  if (found == speedup_by_version_.end()) {
    if (speedup_by_version_.size() == kVersionsMeasured)
      speedup_by_version_.erase(speedup_by_version_.begin());
    speedup_by_version_.emplace_back(*version, SpeedupSums{});
    found = speedup_by_version_.end() - 1;
  }
  found->second.record(round);
}

void EngineCore::swap_took(double ms) {
  stats_.swap_pause_last_ms = ms;
  stats_.swap_pause_max_ms = std::max(stats_.swap_pause_max_ms, ms);
  if (swap_pauses_.size() < kSwapPauses) {
    swap_pauses_.push_back(ms);
  } else {
    swap_pauses_[next_pause_] = ms;
    next_pause_ = (next_pause_ + 1) % kSwapPauses;
  }
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
