// Replay-exact scoring of a whole portfolio, the learned head included, on logged requests. What
// the target emitted does not depend on what was drafted (drafter-invariant sampling), and what a
// speculator would have proposed is a function of the logged tokens, candidates, features and the
// seed: so how many of its tokens would have been accepted is known without running the model. The
// head runs here with the served weights and kernels, from the very rounded features it read live.
// Not thread-safe (it owns the head's buffers); nothing is shared between two of them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "foretoken/protocol/trace_record.h"
#include "runtime/observe/stats.h"
#include "runtime/speculate/draft_policy.h"
#include "runtime/speculate/kind_calibration.h"
#include "runtime/speculate/learned.h"
#include "runtime/speculate/registry.h"
#include "runtime/speculate/round_costs.h"

namespace foretoken {

struct PortfolioWalk {
  AcceptanceStats stats;
  std::vector<std::int32_t> starts;    // of each round: absolute position of its first token
  std::vector<std::int32_t> accepted;  // of each round
  std::vector<std::int32_t> drafted;   // of each round
  std::int64_t head_starts = 0, head_steps = 0;
  double predicted_ms = 0;                   // 0 without costs
  std::int64_t rounds_without_features = 0;  // the head could not run: taps were not logged there
};

class PortfolioReplay {
 public:
  // kinds: which speculators propose; of those that run a model the head, where learned has one.
  // learned may be null; outlived by it.
  PortfolioReplay(SpecType kinds, const LearnedWeights* learned);
  ~PortfolioReplay();

  // Rounds of at most draft_length tokens, from the second generated token on (the first came with
  // the prompt). With one kind the walk is what a server with --spec-type of that kind and that
  // fixed length did; with head set, the head drafts every position. With ngram and another, each
  // position takes the higher calibrated confidence; the calibration is this object's own, learned
  // from the traces it walked before, in their order.
  PortfolioWalk walk_fixed(const RequestTrace& trace, int draft_length,
                           const RoundCosts* costs = nullptr);
  // The rounds that a server's policy would run (draft_policy.h, the same code) if the request were
  // alone in it and rounds cost this.
  PortfolioWalk walk_costed(const RequestTrace& trace, int max_draft, const RoundCosts& costs);
  // At the logged round starts, lengths and, position by position, kinds: what these weights would
  // have had accepted of what was asked then. With the weights that served (and `kinds` covering
  // what they drafted), each round's accepted count is the logged one. Positions of other kinds
  // (model) count as logged.
  PortfolioWalk walk_logged(const RequestTrace& trace, const RoundCosts* costs = nullptr);

  // What the walks have learned of the kinds' confidences, and the policy's state. Live, a swap
  // does not reset it: another version's replay may begin with it.
  struct Calibration {
    KindCalibration kinds;
    PolicyState policy;
  };
  const Calibration& calibration() const;
  void set_calibration(const Calibration& calibration);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace foretoken
