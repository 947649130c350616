// The online learner of the fusion table: AdamW on fresh positions, once each, and the exponential
// moving average that is published. No torch in this header. One thread. Deterministic: the same
// positions in the same steps from the same state give the same table.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "runtime/evaluate/fusion_replay.h"
#include "trainer/objective/objective.h"

namespace foretoken::trainer {

struct FusionLearnerOptions {
  double learning_rate = 0.02;
  double average_decay =
      0.97;  // over the last 33 steps; begins as min(.97, (1 + step) / (10 + step))
  int positions_per_step = 128;  // see README, "Tuning"
  const Objective* objective = &objectives().front();
};

// Everything that a checkpoint must hold for training to go on as if it had not stopped.
struct FusionLearnerState {
  FusionTable table, average;
  std::vector<float> first_moment,
      second_moment;  // AdamW's, [kFusionClasses + 1]; empty before the first step
  std::int64_t step = 0;
  double loss =
      0;  // moving average of the objective over steps, nats a position; NaN before the first
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
  FusionLearnerState state() const;
  void restore(const FusionLearnerState& state);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace foretoken::trainer
