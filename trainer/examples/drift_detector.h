// Has traffic changed? Per domain, what the learner predicted would be accepted against what was,
// before it learned from it: while the head knows its traffic the difference scatters around a
// steady mean, and when the traffic moves away its confidence no longer comes true. Page's test
// (CUSUM, two-sided) on the standardised difference; a domain that was never seen is a change by
// itself once others are known. Pure and deterministic; its state is plain numbers for the
// checkpoint.
#pragma once

#include <cstdint>
#include <vector>

#include "trainer/examples/domains.h"

namespace foretoken::trainer {

class DriftDetector {
 public:
  // One observation is the mean over this many positions: about a request, enough for its mean to
  // be near normal.
  static constexpr double kPositions = 128;
  // The slack and the bar, in standard deviations. Observations of steady traffic raise an alarm
  // once in about 930 (Siegmund's approximation for k = .5, h = 5, two-sided 465; at h = 6 about
  // 1,250); a change by one deviation is found after about 12, by two after 4.
  static constexpr double kSlack = 0.5, kBar = 6;
  // A domain's first observations say what is usual there, and are no alarm.
  static constexpr int kWarmUp = 8;
  static constexpr double kMemory = 64;  // observations, of what is usual
  static constexpr std::size_t kMostDomains = trainer::kMostDomains;

  struct Domain {
    std::uint64_t name = 0;  // a hash: names are the clients', of any length
    double predicted = 0, accepted = 0, positions = 0;  // of the observation being gathered
    double mean = 0, variance = 0, seen = 0;
    double above = 0, below = 0;  // the two sums
  };

  // predicted, accepted: sums over `positions` of a domain. True: it has changed, or is new.
  bool observe(std::uint64_t domain, double predicted, double accepted, double positions);

  const std::vector<Domain>& state() const { return domains_; }
  // False: damaged; nothing is changed.
  bool restore(std::vector<Domain> domains);

 private:
  std::vector<Domain> domains_;  // in the order in which they came
};

}  // namespace foretoken::trainer
