#include "runtime/evaluate/round_costs.h"

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

}  // namespace

RoundCosts RoundCosts::typical() {
  RoundCosts costs;
  for (int rows = 1; rows <= kRows; ++rows)
    costs.round_ms.push_back(1.0f + kRowShare * static_cast<float>(rows - 1));
  costs.head_start_ms = kHeadStartShare;
  costs.head_step_ms = kHeadStepShare;
  return costs;
}

RoundCosts RoundCosts::measured(std::span<const float> round_ms, float head_start_ms,
                                float head_step_ms) {
  if (round_ms.empty() || !std::all_of(round_ms.begin(), round_ms.end(), sane)) return typical();
  RoundCosts costs;
  costs.round_ms.assign(round_ms.begin(),
                        round_ms.begin() + std::min<std::ptrdiff_t>(std::ssize(round_ms), 64));
  costs.head_start_ms = sane(head_start_ms) ? head_start_ms : kHeadStartShare * costs.round_ms[0];
  costs.head_step_ms = sane(head_step_ms) ? head_step_ms : kHeadStepShare * costs.round_ms[0];
  return costs;
}

double RoundCosts::round(int rows) const {
  if (round_ms.empty()) return 1.0;
  const auto last = std::ssize(round_ms);
  const std::ptrdiff_t at = std::max(1, rows);
  if (at <= last) return round_ms[std::size_t(at - 1)];
  const double step = last > 1 ? round_ms[std::size_t(last - 1)] - round_ms[std::size_t(last - 2)]
                               : kRowShare * round_ms[0];
  return round_ms[std::size_t(last - 1)] + std::max(0.0, step) * double(at - last);
}

}  // namespace foretoken
