// What paired requests say of two versions: of a canary against the version that serves, by replay
// and as its own requests ran, and of the served version against the one before it. Pure
// statistics, any-time valid (sequential_test.h): the same requests give the same verdict.
#pragma once

#include <deque>
#include <optional>
#include <string>

#include "foretoken/protocol/trace_record.h"
#include "runtime/evaluate/sequential_test.h"

namespace foretoken {

struct TrialRules {
  double margin = 0.02;       // no worse than this is good enough: the trainer's gate showed a gain
  double live_margin = 0.05;  // the live arms are different requests: only a clear loss counts
  double alpha = 0.005;       // of a wrong promotion, of a wrong rollback: each, a canary
  int most_requests = 400;    // replayed; then it is decided by the plain 95 % bound
  // A served version's watch starts over after some hundred requests, so that an old gain does not
  // hide a new loss. Ten epochs an hour, err once in a month or two: 1e-4 each.
  int watch_epoch = 300;
  double watch_alpha = 1e-4;
};

// What one request's decoding would have cost, in rounds or predicted ms, whichever, for the same
// tokens.
struct PairedCosts {
  double candidate = 0, served = 0;
};

struct TrialVerdict {
  bool promoted = false;  // else it is rolled back
  std::string reason;
};

class VersionTrial {
 public:
  void add_replayed(const PairedCosts& costs) { replay_.add(costs.candidate, costs.served); }
  // A finished request that one of the two drafted for throughout; others say nothing.
  void add_live(const RequestTrace& trace, SpeculatorVersion canary, SpeculatorVersion served);
  std::optional<TrialVerdict> verdict(const TrialRules& rules) const;  // nullopt: goes on

  const PairedSums& replay() const { return replay_; }
  const PairedSums& live() const { return live_; }

 private:
  PairedSums replay_, live_;
  // Live cost (rounds a token) of requests that wait for one of the other arm to be paired with.
  std::deque<double> unpaired_canary_, unpaired_served_;
};

class VersionWatch {
 public:
  void add(const PairedCosts& costs) { sums_.add(costs.candidate, costs.served); }
  // Whether the served version is shown to be slower. Starts over at the end of an epoch.
  bool slower(const TrialRules& rules);
  const PairedSums& sums() const { return sums_; }

 private:
  PairedSums sums_;
};

}  // namespace foretoken
