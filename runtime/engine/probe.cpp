#include "runtime/engine/probe.h"

#include <algorithm>

#include "foretoken/protocol/transport.h"
#include "runtime/speculate/registry.h"

namespace foretoken {

EngineProbe::EngineProbe(const EngineProbeOptions& options)
    : options_(options), windows_(options.windows) {
  domains_.reserve(kMaxDomains + 1);
  speedup_by_version_.reserve(kVersionsMeasured + 1);
  swap_pauses_.reserve(kSwapPauses);
}

int EngineProbe::domain(const std::string& name) {
  auto found = std::ranges::find(domains_, name, &Domain::name);
  if (found == domains_.end()) {
    const bool room = domains_.size() < kMaxDomains;
    const std::string known = room ? name : "(other)";
    if (!room && domains_.size() > kMaxDomains) return int(kMaxDomains);
    domains_.push_back({known, {}, name.empty() || !room ? -1 : speedup_.label(name)});
    found = domains_.end() - 1;
  }
  return int(found - domains_.begin());
}

int EngineProbe::version(SpeculatorVersion version) {
  auto found = std::ranges::find(versions_, version.value,
                                 &std::pair<std::uint64_t, AcceptanceStats>::first);
  if (found == versions_.end())
    found = versions_.insert(versions_.end(), {version.value, AcceptanceStats{}});
  return int(found - versions_.begin());
}

void EngineProbe::decoded(SteadyTime now, int domain, int version,
                          std::optional<SpeculatorKind> kind, const AcceptanceStats& outcome) {
  kept_.acceptance.add(outcome);
  domains_[std::size_t(domain)].acceptance.add(outcome);
  versions_[std::size_t(version)].second.add(outcome);
  if (kind) kinds_[std::size_t(*kind)].add(outcome);
  if (now - seconds_[second_].at > std::chrono::seconds(1)) {
    second_ = (second_ + 1) % kSeconds;
    seconds_[second_] = {now, {}};
  }
  seconds_[second_].acceptance.add(outcome);
}

bool EngineProbe::plain(SteadyTime now) {
  return windows_.plain(seconds_of(now.time_since_epoch()));
}

void EngineProbe::round(SteadyTime now, const ProbedRound& round) {
  if (!round.comparable || !options_.speculates) return;
  const double now_s = seconds_of(now.time_since_epoch());
  windows_.record(now_s, round.cost.sequences, round.cost.tokens, round.cost.ms);
  if (round.plain || options_.control_fraction <= 0) return;
  const int label = round.domain >= 0 ? domains_[std::size_t(round.domain)].speedup : -1;
  speedup_.record(round.cost, now_s, std::span(&label, label >= 0 ? 1 : 0));
  if (round.cost.control) {
    for (SpeedupSums& sums : speedup_by_kind_) sums.record(round.cost);
  } else if (round.kind) {
    speedup_by_kind_[std::size_t(*round.kind)].record(round.cost);
  }
  if (round.version < 0) return;
  const std::uint64_t version = versions_[std::size_t(round.version)].first;
  auto found = std::ranges::find(speedup_by_version_, version,
                                 &std::pair<std::uint64_t, SpeedupSums>::first);
  if (found == speedup_by_version_.end()) {
    if (speedup_by_version_.size() == kVersionsMeasured)
      speedup_by_version_.erase(speedup_by_version_.begin());
    speedup_by_version_.emplace_back(version, SpeedupSums{});
    found = speedup_by_version_.end() - 1;
  }
  found->second.record(round.cost);
}

void EngineProbe::swap_took(double ms) {
  kept_.swap_pause_last_ms = ms;
  kept_.swap_pause_max_ms = std::max(kept_.swap_pause_max_ms, ms);
  if (swap_pauses_.size() < kSwapPauses) {
    swap_pauses_.push_back(ms);
  } else {
    swap_pauses_[next_pause_] = ms;
    next_pause_ = (next_pause_ + 1) % kSwapPauses;
  }
}

void EngineProbe::fill(EngineStats& stats, SteadyTime now) const {
  stats = kept_;
  const auto seen = [](const AcceptanceStats& a) { return a.rounds > 0; };
  for (const Domain& d : domains_) {
    if (seen(d.acceptance)) stats.by_domain[d.name] = d.acceptance;
    if (d.speedup < 0) continue;
    if (const auto interval = speedup_.by_label(d.name))
      stats.speedup_by_domain[d.name] = *interval;
  }
  for (const auto& [version, a] : versions_)
    if (seen(a)) stats.by_version[version] = a;
  for (const SpeculatorRow& row : kSpeculators) {
    const auto kind = std::size_t(row.kind);
    const std::string name(row.name);
    if (seen(kinds_[kind])) stats.by_kind[name] = kinds_[kind];
    if (const auto interval = speedup_by_kind_[kind].estimate())
      stats.speedup_by_kind[name] = *interval;
  }
  for (const auto& [version, sums] : speedup_by_version_) {
    if (const auto interval = sums.estimate()) stats.speedup_by_version[version] = *interval;
  }

  double span = 0;
  for (const Second& s : seconds_) {
    if (!seen(s.acceptance) || now - s.at > std::chrono::seconds(60)) continue;
    span = std::max(span, seconds_of(now - s.at));
    stats.acceptance_last_minute.add(s.acceptance);
  }
  stats.decode_tokens_per_s_last_minute =
      span > 0 ? double(stats.acceptance_last_minute.emitted) / std::max(span, 1.0) : 0;

  stats.speedup = speedup_.overall();
  stats.speedup_last_minute = speedup_.last_minute(seconds_of(now.time_since_epoch()));
  stats.net_speedup = windows_.estimate();
  stats.speedup_sums = std::make_shared<const SpeedupSums>(speedup_.total());
  std::vector<double> pauses = swap_pauses_;
  std::ranges::sort(pauses);
  if (!pauses.empty()) {
    stats.swap_pause_p50_ms = pauses[pauses.size() / 2];
    stats.swap_pause_p99_ms = pauses[(pauses.size() * 99 + 99) / 100 - 1];
  }
}

}  // namespace foretoken
