// Traffic of a simulation: every position has two candidates, and the wrong one has the class that
// every other rule prefers. What there is to learn are kLessons classes of right candidates, each
// worth some accepted tokens, so that a gate that measures sees every lesson after a few requests.
#pragma once

#include "foretoken/protocol/trace_record.h"
#include "runtime/speculate/fusion_table.h"
#include "tests/unit/trainer/synthetic_traffic.h"

namespace foretoken::simulation {

inline constexpr int kLessons = 10;
inline constexpr std::uint8_t kWrongClass = 64, kFirstRightClass = 5;

// Knows the first `lessons` classes.
inline FusionTable table_of(int lessons) {
  FusionTable table = FusionTable::initial();
  for (int i = 0; i < lessons; ++i)
    table.bias[std::size_t(kFirstRightClass + i)] = table.bias[kWrongClass] + 5;
  return table;
}

class SimTraffic {
 public:
  RequestTrace next(int n_generated) {
    RequestTrace trace;
    trace.request = {++requests_};
    trace.model_fingerprint = trainer::test_fingerprint();
    trace.tokens = {1, 2, 3};
    trace.n_prompt = 3;
    for (int i = 0; i < n_generated; ++i) {
      const auto lesson = int((requests_ + std::uint64_t(i) * 3) % kLessons);
      const TokenId right = 100 + lesson, wrong = 200 + lesson;
      GeneratedTokenTrace& generated = trace.generated.emplace_back();
      generated.candidates = {{wrong, kWrongClass},
                              {right, static_cast<std::uint8_t>(kFirstRightClass + lesson)}};
      generated.top_ids = {right, wrong};
      generated.top_logits = {2.0f, 0.0f};
      generated.log_sum_exp = 2.2f;
      generated.logprob = -0.2f;
      trace.tokens.push_back(right);
    }
    return trace;
  }

 private:
  std::uint64_t requests_ = 0;
};

}  // namespace foretoken::simulation
