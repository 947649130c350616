// What a round costs, in ms: T(rows, work) = speed * shape(rows) + speed * slope * work, re-fitted
// from every measured round, plus the measured cost of a draft step of those that run a model.
//   rows  = of the whole round, all sequences (each: 1 + its draft); shape does not decrease in it
//   work  = sum over sequences of rows * context, in thousands: what attention reads
//   speed = how fast the machine is just now (shared machines drift)
// The shape is learned from differences against the drifting speed, so that a slow minute at one
// row count does not make it look dear; residuals are clipped at three deviations, so that one
// descheduled round moves nothing. Counts never measured are interpolated, and beyond the measured
// ones follow the prior's slope. Engine thread; nothing allocates after construction.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/speculate/estimators.h"
#include "runtime/speculate/round_costs.h"

namespace foretoken {

class CostModel {
 public:
  explicit CostModel(int max_rows);

  // What it knows now, in units of the round's speed of the moment, so that ratios survive its
  // drift.
  const RoundCosts& costs() const { return costs_; }
  // All of a round; one with prefill rows says nothing.
  void observe(const RoundMeasurement& round);
  // A decode round without prefill rows. ms: verify (the target's forward pass and what follows
  // it).
  void observe(int rows, double work, double ms);
  // steps: forward passes of the draft model in this round, catching up included.
  void observe_draft(int steps, double ms);
  // The learned head in one round: beginning its drafts, and `steps` positions of all of them.
  void observe_head(double begin_ms, int steps, double steps_ms);
  // Before it was measured: a step costs this share of a round of one row, beginning a quarter of
  // it (round_costs.cpp).
  void expect_head(double relative);
  bool head_measured() const { return head_step_.steps > 0; }

  double round_ms(int rows, double work = 0) const { return speed_ms() * relative(rows, work); }
  double relative(int rows, double work = 0) const {
    return costs_.rounds[clamp(rows) - 1] + costs_.slope * work;
  }
  double speed_ms() const;
  int max_rows() const { return max_rows_; }
  std::int64_t rounds() const { return rounds_; }
  double noise() const { return deviation_; }  // of one round, relative

 private:
  struct Cell {
    double offset = 0;  // log cost over the prior's, relative to the common speed
    double weight = 0;  // effective rounds, forgetting
  };
  std::size_t clamp(int rows) const;
  double prior(int rows) const;  // relative to one row
  void refit();
  void price_head();

  int max_rows_;
  RoundCosts costs_;                            // rounds: exp(fitted offset) * prior, isotonic
  std::vector<Cell> cells_;                     // [max_rows + 1], index = rows
  double log_speed_ = 0;                        // ms of one row, context 0
  double lever_mean_ = 0, lever_variance_ = 0;  // of d log T / d slope
  double deviation_ = 0.1;                      // mean absolute residual * 1.25, log domain
  std::int64_t rounds_ = 0;
  struct DraftCost {
    double relative = 0, steps = 0;  // sums, forgetting
    void add(double cost, int n);
    double per(double otherwise) const { return steps > 0 ? relative / steps : otherwise; }
  };
  DraftCost head_start_, head_step_, model_step_;
  double head_expected_ = 0.05;
  std::vector<IsotonicFit<double>::Block> blocks_;  // scratch of refit()
};

}  // namespace foretoken
