// The online learner of the fusion table: AdamW on fresh positions, once each, and the exponential
// moving average that is published. No torch in this header. One thread. Deterministic: the same
// positions in the same steps from the same state give the same table.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "runtime/evaluate/fusion_replay.h"
#include "trainer/learner/learner.h"
#include "trainer/learner/state_map.h"
#include "trainer/objective/objective.h"

namespace foretoken::trainer {

struct FusionLearnerOptions {
  double learning_rate = 0.02;
  // Over the last 33 steps; begins as min(.97, (1 + step) / (10 + step)).
  double average_decay = 0.97;
  int positions_per_step = 128;  // see README, "Tuning"
  const Objective* objective = &objectives().front();
};

class FusionLearner {
 public:
  FusionLearner(const FusionLearnerOptions& options, const FusionTable& initial);
  ~FusionLearner();

  // One pass over the positions in steps of positions_per_step (the last may be up to half as long
  // again).
  void train(std::span<const FusionPosition> positions);

  FusionTable average() const;  // what is published
  std::int64_t step() const;
  double loss() const;
  // Everything needed to go on as if it had not stopped. Errors: kInvalidInput; nothing is changed.
  void save(StateMap& map) const;
  Status restore(const StateMap& map);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace foretoken::trainer
