// What the engine measures of itself: every counter and estimator behind EngineStats. The engine
// tells it what happened, by index; what has a name (a request's domain, a version of the weights)
// is interned when it comes in, so that a round looks nothing up and allocates nothing. Engine
// thread only.
//   at admission or a swap: label = domain(name), version(v)         may allocate
//   in a round:             add(), decoded(), round()                never allocates
//   ten times a second:     fill()                                   may allocate
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/observe/net_speedup.h"
#include "runtime/observe/speedup.h"
#include "runtime/observe/stats.h"

namespace foretoken {

using SteadyTime = std::chrono::steady_clock::time_point;

struct EngineProbeOptions {
  double control_fraction = 0;
  bool speculates = true;  // else no speedup is measured
  NetSpeedupOptions windows;
};

// One round in which sequences decoded, as measured.
struct ProbedRound {
  SpeedupRound cost;
  bool comparable = false;  // no prefill beside it, and every sequence may be drafted for
  bool plain = false;       // of a plain window
  int domain = -1;          // of all its sequences; -1: they differ
  // What drafted, one throughout; none: nothing or several.
  std::optional<SpeculatorKind> kind;
  int version = -1;  // of all its sequences; -1: they differ
};

class EngineProbe {
 public:
  explicit EngineProbe(const EngineProbeOptions& options);

  // Labels. Domains come from clients: past kMaxDomains they share one.
  int domain(const std::string& name);
  int version(SpeculatorVersion version);

  void add(std::int64_t EngineStats::*count, std::int64_t n = 1) { kept_.*count += n; }

  // One sequence's part of a decode round. kind: of its draft's first token; none: no draft.
  void decoded(SteadyTime now, int domain, int version, std::optional<SpeculatorKind> kind,
               const AcceptanceStats& outcome);
  void round(SteadyTime now, const ProbedRound& round);
  void swap_took(double ms);

  // Whether the round that begins now is of a plain window (net_speedup.h).
  bool plain(SteadyTime now);
  bool plain_now() const { return windows_.plain_now(); }

  // The figures of its own; the engine adds what is true at the moment (queues, pages, versions).
  void fill(EngineStats& stats, SteadyTime now) const;

 private:
  static constexpr std::size_t kMaxDomains = 256;
  static constexpr std::size_t kVersionsMeasured = 8;  // speedups: of the newest
  static constexpr std::size_t kSwapPauses = 1024;
  static constexpr std::size_t kSeconds = 62;  // of the last minute

  struct Domain {
    std::string name;
    AcceptanceStats acceptance;
    int speedup = -1;  // the estimator's label
  };
  struct Second {
    SteadyTime at;
    AcceptanceStats acceptance;
  };

  EngineProbeOptions options_;
  EngineStats kept_;  // what is counted as it is shown: counters, acceptance, the last swap's pause
  std::vector<Domain> domains_;
  std::vector<std::pair<std::uint64_t, AcceptanceStats>> versions_;
  std::array<AcceptanceStats, kSpeculatorKinds> kinds_{};
  std::array<Second, kSeconds> seconds_{};  // a ring; seconds_[second_] is the present one
  std::size_t second_ = 0;

  SpeedupEstimator speedup_;
  NetSpeedupWindows windows_;
  // Treatment: rounds that drafted with this kind alone, or for sequences of this version alone.
  // Control: every control round (kinds), every control round of those sequences (versions): what a
  // token costs without speculation, at equal concurrency and context, is the same whoever would
  // have drafted.
  std::array<SpeedupSums, kSpeculatorKinds> speedup_by_kind_;
  std::vector<std::pair<std::uint64_t, SpeedupSums>> speedup_by_version_;
  std::vector<double> swap_pauses_;  // ms, the last ones, as a ring
  std::size_t next_pause_ = 0;
};

}  // namespace foretoken
