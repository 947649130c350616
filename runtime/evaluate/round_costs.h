// What a round costs, for predicting time from a log: the ms of a decode round by its rows (one
// sequence: 1 + its draft), and of the head's draft. A server measures them and says them in its
// hello; predictions compare drafters on one machine, so only ratios matter.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace foretoken {

struct RoundCosts {
  std::vector<float> round_ms;  // [0] is 1 row; empty: not measured
  float head_start_ms = 0, head_step_ms = 0;

  // Until something is measured: a round of r rows costs 1 + 0.06 (r - 1) of a plain one (0.05 to
  // 0.09 on AVX-512 and AVX2 cores with 4-bit weights), a step of the head a twentieth, its start a
  // quarter of that.
  static RoundCosts typical();
  // Damaged or absurd measurements (not positive, not finite) are replaced by typical ones.
  static RoundCosts measured(std::span<const float> round_ms, float head_start_ms,
                             float head_step_ms);

  // Beyond the last measured count by its last difference. rows >= 1.
  double round(int rows) const;
  // One round that drafted `drafted` tokens, with `head_steps` steps of the head.
  double draft_round(int drafted, int head_steps) const {
    return round(1 + drafted) +
           (head_steps > 0 ? head_start_ms + double(head_steps) * head_step_ms : 0.0);
  }
  bool operator==(const RoundCosts&) const = default;
};

}  // namespace foretoken
