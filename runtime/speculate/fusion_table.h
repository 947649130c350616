// Tier 0 of the learned speculator: a learned bias for each candidate class (fusion of n-gram
// candidates).
//   score(v) = sum of bias[class] over v's candidates; "something else" has the logit other;
//   q(v) = exp score(v) / (exp other + sum_u exp score(u))
// Immutable and shared once published.
#pragma once

#include <array>

#include "foretoken/protocol/trace_record.h"

namespace foretoken {

class FusionTable {
 public:
  std::array<float, kFusionClasses> bias{};
  float other = 0;
  // Sensible positive values, rising with match length, order, probability and count
  // (before anything is learned).
  static FusionTable initial();
  bool finite() const;
};

}  // namespace foretoken
