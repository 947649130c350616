// What an operator may know of the learned speculator: what serves, what is on trial, what came
// before. A plain copyable struct; GET /v1/speculator, /stats, `foretoken stats` and the dashboard
// format it. Filled by VersionKeeper (runtime/trace).
#pragma once

#include <boost/json/array.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "foretoken/protocol/ids.h"

namespace foretoken {

// What the whole portfolio gains with one version over another, relative: 0.03 is 3 % faster. 95 %,
// any-time valid.
struct GainFigures {
  std::int64_t requests = 0;
  double gain = 0, low = 0, high = 0;
};

struct CanaryState {
  SpeculatorVersion version;
  double since_s = 0;
  double fraction = 0;  // of requests drafted for with it
  // It against the served version, both replayed on the same requests: in predicted time.
  GainFigures replay;
  // Its requests against the others', as they ran: in rounds for the same tokens.
  GainFigures live;
};

struct SpeculatorState {
  SpeculatorVersion served, parent;
  std::string kind;                // of its bundle, for people; "none": as shipped
  std::vector<std::string> tiers;  // the speculators that may draft by it, or by the canary
  double age_s = 0;
  std::string verdict;  // of the trainer's gate on it
  bool frozen = false;
  std::optional<CanaryState> canary;
  std::optional<SpeculatorVersion> waiting;   // received, its canary begins after the present one
  std::optional<SpeculatorVersion> previous;  // what a rollback would serve; 0 is as shipped
  GainFigures watch;  // served against previous, by replay, since it was promoted
  std::vector<std::uint64_t> proven, banned;
  std::int64_t promoted = 0, rolled_back = 0, refused = 0;  // since the server started
  std::int64_t judged = 0,
               judge_dropped = 0;  // requests replayed; not replayed, the queue was full
  boost::json::array lineage;      // the newest events, oldest first
};

}  // namespace foretoken
