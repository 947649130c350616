#include "trainer/examples/drift_detector.h"

#include <algorithm>
#include <cmath>

namespace foretoken::trainer {

bool DriftDetector::observe(std::uint64_t name, double predicted, double accepted,
                            double positions) {
  if (!(positions > 0)) return false;
  const std::size_t known = domains_.size();
  Domain& d = entry_of_domain(domains_, name);
  const bool is_new = domains_.size() > known;
  d.predicted += predicted;
  d.accepted += accepted;
  d.positions += positions;
  const bool first_of_new = is_new && domains_.size() > 1;
  if (d.positions < kPositions) return first_of_new;
  const double x = (d.accepted - d.predicted) / d.positions;
  d.predicted = d.accepted = d.positions = 0;
  bool alarm = false;
  if (d.seen >= kWarmUp) {
    // The standard error of a mean of kPositions coins is .044 at most: a floor well below it keeps
    // a run of equal observations from making anything an alarm.
    const double z = (x - d.mean) / std::sqrt(std::max(d.variance, 1e-4));
    d.above = std::max(0.0, d.above + z - kSlack);
    d.below = std::max(0.0, d.below - z - kSlack);
    alarm = d.above > kBar || d.below > kBar;
  }
  if (alarm) {
    d = {.name = d.name};  // what is usual is learned anew
    return true;
  }
  d.seen += 1;
  const double step = 1 / std::min(d.seen, kMemory), away = x - d.mean;
  d.mean += step * away;
  d.variance += step * (away * away * (1 - step) - d.variance);
  return first_of_new;
}

bool DriftDetector::restore(std::vector<Domain> domains) {
  if (domains.size() > kMostDomains) return false;
  for (const Domain& d : domains) {
    for (const double v :
         {d.predicted, d.accepted, d.positions, d.mean, d.variance, d.seen, d.above, d.below}) {
      if (!std::isfinite(v)) return false;
    }
  }
  domains_ = std::move(domains);
  return true;
}

}  // namespace foretoken::trainer
