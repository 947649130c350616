#include "runtime/speculate/cost_model.h"

#include <algorithm>
#include <cmath>

namespace foretoken {
namespace {

// Before anything is measured, each further row costs 8 % of the first: weights are read once for
// all rows, arithmetic and the sampler are not (measured on 135M to 1.5B models, 2 to 4 rows,
// AVX-512: 5 to 10 %).
constexpr double kPriorRowCost = 0.08;
// Speed follows within a dozen rounds: faster than machines drift, and noise of 10 % a round leaves
// 2 %.
constexpr double kSpeedGain = 0.08;
// A row count's offset is the mean of its last sixty rounds or so: with 10 % noise, 1.3 %.
constexpr double kCellMemory = 60;
// How much a measured count leans on what its neighbours suggest, in rounds.
constexpr double kNeighbourStrength = 3;
constexpr double kClipDeviations = 3;
constexpr double kSlopeGain = 0.01;
constexpr double kDraftMemory = 400;  // steps

}  // namespace

CostModel::CostModel(int max_rows)
    : max_rows_(std::max(1, max_rows)), cells_(std::size_t(max_rows_) + 1), blocks_(cells_.size()) {
  costs_.rounds.resize(std::size_t(max_rows_));
  costs_.seen.resize(costs_.rounds.size());
  refit();
  price_head();
}

std::size_t CostModel::clamp(int rows) const { return std::size_t(std::clamp(rows, 1, max_rows_)); }

double CostModel::prior(int rows) const { return 1.0 + kPriorRowCost * (rows - 1); }

double CostModel::speed_ms() const { return rounds_ == 0 ? 1.0 : std::exp(log_speed_); }

void CostModel::observe(const RoundMeasurement& round) {
  if (round.prefill_rows > 0 || round.sequences < 1) return;
  observe(round.rows, round.work, round.verify_ms);
  if (round.draft_steps > 0) observe_draft(round.draft_steps, round.draft_ms);
  if (round.head_steps > 0)
    observe_head(round.head_begin_ms, round.head_steps, round.head_steps_ms);
}

void CostModel::observe(int rows, double work, double ms) {
  if (!(ms > 0) || rows < 1 || rows > max_rows_) return;
  Cell& cell = cells_[clamp(rows)];
  const double predicted = relative(rows, work);
  if (rounds_ == 0) log_speed_ = std::log(ms / predicted);
  double residual = std::log(ms / predicted) - log_speed_;
  // The first rounds set the scale; after that one outlier moves as much as three deviations do.
  const double clip = rounds_ < 8 ? 1.0 : kClipDeviations * deviation_;
  residual = std::clamp(residual, -clip, clip);
  ++rounds_;
  if (auto& seen = costs_.seen[clamp(rows) - 1]; seen < 255) ++seen;

  const double speed_gain = std::max(kSpeedGain, 1.0 / double(rounds_));
  cell.weight = std::min(cell.weight + 1.0, kCellMemory);
  cell.offset += residual / cell.weight;
  log_speed_ += speed_gain * residual;
  deviation_ += std::min(0.05, 1.0 / double(rounds_)) * (1.25 * std::abs(residual) - deviation_);
  deviation_ = std::max(deviation_, 0.005);

  // The slope by normalised least mean squares on what its lever does beyond its running mean: the
  // mean itself is the speed's to explain.
  const double lever = work / predicted;
  const double centred = lever - lever_mean_;
  lever_mean_ += 0.02 * centred;
  lever_variance_ += 0.02 * (centred * centred - lever_variance_);
  if (rounds_ > 32 && lever_variance_ > 0) {
    costs_.slope = std::max(0.0, costs_.slope + kSlopeGain * residual * centred /
                                                    (lever_variance_ + centred * centred));
  }
  refit();
}

void CostModel::observe_draft(int steps, double ms) {
  if (steps < 1 || !(ms >= 0)) return;
  model_step_.add(ms / speed_ms(), steps);
  costs_.model_step = model_step_.per(0.0);
}

void CostModel::observe_head(double begin_ms, int steps, double steps_ms) {
  if (steps < 1 || !(begin_ms >= 0) || !(steps_ms >= 0)) return;
  head_start_.add(begin_ms / speed_ms(), 1);
  head_step_.add(steps_ms / speed_ms(), steps);
  price_head();
}

void CostModel::expect_head(double relative) {
  head_expected_ = relative;
  price_head();
}

void CostModel::price_head() {
  costs_.head_start = head_start_.per(head_expected_ / 4);
  costs_.head_step = head_step_.per(head_expected_);
}

void CostModel::DraftCost::add(double cost, int n) {
  if (steps >= kDraftMemory) {
    const double keep = kDraftMemory / (kDraftMemory + n);
    relative *= keep;
    steps *= keep;
  }
  relative += cost;
  steps += n;
}

void CostModel::refit() {
  // Offsets over the prior: a measured count leans a little on the line between its measured
  // neighbours, an unmeasured one is on it; outside, the nearest measured offset goes on.
  int left = 0;  // the nearest measured count below
  int right = 1;
  IsotonicFit<double> fit(blocks_);
  for (int rows = 1; rows <= max_rows_; ++rows) {
    if (right <= rows) {
      right = rows + 1;
      while (right <= max_rows_ && cells_[std::size_t(right)].weight == 0) ++right;
    }
    double line = 0;
    const bool has_left = left >= 1, has_right = right <= max_rows_;
    if (has_left && has_right) {
      const double at = double(rows - left) / (right - left);
      line = (1 - at) * cells_[std::size_t(left)].offset + at * cells_[std::size_t(right)].offset;
    } else if (has_left || has_right) {
      line = cells_[std::size_t(has_left ? left : right)].offset;
    }
    const Cell& cell = cells_[std::size_t(rows)];
    const bool alone = !has_left && !has_right;
    const double strength = alone ? 0.0 : kNeighbourStrength;
    double offset = line, weight = 0.1;
    if (cell.weight > 0) {
      offset = (cell.weight * cell.offset + strength * line) / (cell.weight + strength);
      weight = cell.weight + strength;
      left = rows;
    }
    fit.add(prior(rows) * std::exp(offset), weight);
  }
  fit.write(costs_.rounds.begin());
  // Half of all counts wide: what a row costs in a large batch.
  const int far = max_rows_, span = std::min(std::max(1, far / 2), far - 1);
  costs_.batch_row = span > 0 ? (relative(far) - relative(far - span)) / span : 0;
}

}  // namespace foretoken
