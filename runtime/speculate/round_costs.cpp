#include "runtime/speculate/round_costs.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace foretoken {
namespace {

constexpr int kRows = 17;
// Of a plain round. A head's step reads a twentieth of what the target does, its start a quarter of
// that (fc beside step, gate, up, down and the output rows: 1.3 of 6.2 million weights on the 135M,
// 3.2 of 16 on the 0.5B).
constexpr float kRowShare = 0.06f, kHeadStepShare = 0.05f, kHeadStartShare = 0.0125f;

bool sane(float ms) { return std::isfinite(ms) && ms > 0; }

// The last difference: a row's cost far out.
double last_row(const std::vector<double>& rounds) {
  const std::size_t n = rounds.size();
  if (n == 0) return 0;
  return n > 1 ? std::max(0.0, rounds[n - 1] - rounds[n - 2]) : double(kRowShare) * rounds[0];
}

}  // namespace

RoundCosts RoundCosts::typical() {
  RoundCosts costs;
  for (int rows = 1; rows <= kRows; ++rows)
    costs.rounds.push_back(1.0f + kRowShare * float(rows - 1));
  costs.batch_row = last_row(costs.rounds);
  costs.head_start = kHeadStartShare;
  costs.head_step = kHeadStepShare;
  return costs;
}

RoundCosts RoundCosts::measured(std::span<const float> round_ms, float head_start_ms,
                                float head_step_ms) {
  if (round_ms.empty() || !std::all_of(round_ms.begin(), round_ms.end(), sane)) return typical();
  const auto known = round_ms.first(std::min<std::size_t>(round_ms.size(), 64));
  return exactly(known, sane(head_start_ms) ? head_start_ms : kHeadStartShare * known[0],
                 sane(head_step_ms) ? head_step_ms : kHeadStepShare * known[0]);
}

RoundCosts RoundCosts::exactly(std::span<const float> round_ms, float head_start_ms,
                               float head_step_ms) {
  RoundCosts costs;
  costs.rounds.assign(round_ms.begin(), round_ms.end());
  costs.batch_row = last_row(costs.rounds);
  costs.head_start = head_start_ms;
  costs.head_step = head_step_ms;
  return costs;
}

std::vector<float> RoundCosts::round_ms() const { return {rounds.begin(), rounds.end()}; }

RoundCosts RoundCosts::relative() const {
  RoundCosts costs = *this;
  const double unit = round(1);
  for (double& cost : costs.rounds) cost /= unit;
  for (double* cost :
       {&costs.slope, &costs.batch_row, &costs.head_start, &costs.head_step, &costs.model_step})
    *cost /= unit;
  return costs;
}

double RoundCosts::round(int rows) const {
  if (rounds.empty()) return 1.0;
  const auto last = std::ssize(rounds);
  const std::ptrdiff_t at = std::max(1, rows);
  if (at <= last) return rounds[std::size_t(at - 1)];
  return rounds[std::size_t(last - 1)] + last_row(rounds) * double(at - last);
}

int RoundCosts::times_seen(int rows) const {
  if (seen.empty()) return 255;
  return seen[std::size_t(std::clamp<std::ptrdiff_t>(rows, 1, std::ssize(seen)) - 1)];
}

double RoundCosts::of(const RoundMeasurement& m, double so_far) const {
  return so_far + (round(m.rows) + slope * m.work) + model_step * m.draft_steps +
         (m.head_steps > 0 ? head_start + head_step * m.head_steps : 0.0);
}

}  // namespace foretoken
