#include "runtime/versions/version_trial.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace foretoken {
namespace {

// Live costs wait for a partner of the other arm: a little more than the fraction's imbalance.
constexpr std::size_t kMaxUnpaired = 64;
constexpr int kLeastLivePairs = 8;       // of requests of both arms before a promotion
constexpr double kLiveDeviations = 2.5;  // one in a hundred and fifty good ones waits for more

double standard_error(const PairedSums& sums) {
  return sums.deviation() / std::sqrt(std::max(1.0, double(sums.requests)));
}

}  // namespace

// The k-th request of one arm against the k-th of the other: independent pairs, one and the same
// traffic, so the paired test holds for them as well.
void VersionTrial::add_live(const RequestTrace& trace, SpeculatorVersion canary,
                            SpeculatorVersion served) {
  std::int64_t rounds = 0, tokens = 0;
  bool by_canary = false, by_served = false;
  for (const RoundTrace& round : trace.rounds) {
    if (round.control) continue;
    ++rounds;
    tokens += round.accepted + 1;
    by_canary |= round.version == canary;
    by_served |= round.version == served;
  }
  // A request that a swap fell into belongs to no arm.
  if (rounds == 0 || by_canary == by_served) return;
  auto& mine = by_canary ? unpaired_canary_ : unpaired_served_;
  if (mine.size() < kMaxUnpaired) mine.push_back(double(rounds) / double(tokens));
  while (!unpaired_canary_.empty() && !unpaired_served_.empty()) {
    live_.add(unpaired_canary_.front(), unpaired_served_.front());
    unpaired_canary_.pop_front();
    unpaired_served_.pop_front();
  }
}

std::optional<TrialVerdict> VersionTrial::verdict(const TrialRules& rules) const {
  if (live_.requests >= kLeastRequests && upper_bound(live_, rules.alpha) < -rules.live_margin)
    return TrialVerdict{false,
                        fmt::format("its requests took more rounds than the others': {:+.1f} % "
                                    "on {}",
                                    100 * live_.gain(), live_.requests)};
  if (replay_.requests < kLeastRequests) return std::nullopt;
  const std::string said = fmt::format("{:+.1f} % predicted speed on {} requests replayed",
                                       100 * replay_.gain(), replay_.requests);
  if (upper_bound(replay_, rules.alpha) < 0) return TrialVerdict{false, "slower: " + said};
  // Replay and reality agree, as far as a few requests of either arm can say; if not, reality is
  // asked on, until the bound above says what it is.
  if (lower_bound(replay_, rules.alpha) > -rules.margin && live_.requests >= kLeastLivePairs &&
      live_.gain() >= -kLiveDeviations * standard_error(live_))
    return TrialVerdict{true, said};
  if (replay_.requests < rules.most_requests) return std::nullopt;
  // Any-time bounds pay for the looks that were taken; at the last one the plain bound is allowed.
  if (replay_.gain() - 1.645 * standard_error(replay_) > -rules.margin &&
      live_.requests >= kLeastLivePairs)
    return TrialVerdict{true, said};
  return TrialVerdict{false, "not shown to be as good: " + said};
}

bool VersionWatch::slower(const TrialRules& rules) {
  if (sums_.requests >= kLeastRequests && upper_bound(sums_, rules.watch_alpha) < 0) return true;
  if (sums_.requests >= rules.watch_epoch) sums_ = {};
  return false;
}

}  // namespace foretoken
