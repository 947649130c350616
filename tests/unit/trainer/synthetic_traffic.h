// Traffic whose best fusion table is known: the target's distribution over the candidates *is* that
// table's.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>

#include "foretoken/protocol/control.h"
#include "foretoken/protocol/trace.h"
#include "runtime/speculate/fusion_table.h"

namespace foretoken::trainer {

inline ModelFingerprint test_fingerprint(std::uint8_t first = 1) {
  ModelFingerprint fingerprint{};
  fingerprint[0] = first;
  return fingerprint;
}

// Rises with the class within each source, unlike FusionTable::initial() in every detail.
inline FusionTable true_table() {
  FusionTable table;
  table.other = 1.0f;
  for (int fusion_class = 0; fusion_class < kFusionClasses; ++fusion_class) {
    table.bias[std::size_t(fusion_class)] =
        fusion_class < 5 ? 0.5f + 0.8f * static_cast<float>(fusion_class)
                         : -2.0f + 0.07f * static_cast<float>((fusion_class * 37) % 60);
  }
  return table;
}

class SyntheticTraffic {
 public:
  explicit SyntheticTraffic(std::uint64_t seed, const FusionTable& truth = true_table())
      : random_(seed), truth_(truth) {}

  // `shuffled`: the candidates' classes say nothing about the target.
  RequestTrace next(float temperature, int n_generated = 100, bool shuffled = false) {
    RequestTrace trace;
    trace.server_run = 1;
    trace.request = {++requests_};
    trace.model_fingerprint = test_fingerprint();
    trace.sampling.temperature = temperature;
    trace.sampling.seed = random_();
    trace.tokens = {1, 2, 3};
    trace.n_prompt = 3;
    for (int i = 0; i < n_generated; ++i) add_position(trace, shuffled);
    return trace;
  }

 private:
  static constexpr TokenId kOther = 9999;  // the one token that is no candidate

  void add_position(RequestTrace& trace, bool shuffled) {
    GeneratedTokenTrace& generated = trace.generated.emplace_back();
    std::vector<double> scores;
    const int n = 1 + int(random_() % 4);
    for (int i = 0; i < n; ++i) {
      const auto fusion_class =
          static_cast<std::uint8_t>(random_() % 3 == 0 ? random_() % 5 : 5 + random_() % 60);
      const TokenId token =
          100 + (random_() % 4 == 0 && i > 0 ? i - 1 : i);  // some tokens come twice
      generated.candidates.push_back({token, fusion_class});
      if (std::size_t(token - 100) >= scores.size())
        scores.resize(std::size_t(token - 100) + 1, -30.0);
      double& score = scores[std::size_t(token - 100)];
      score = (score < -29 ? 0 : score) + truth_.bias[fusion_class];
    }
    if (shuffled) {
      for (Candidate& candidate : generated.candidates)
        candidate.fusion_class = static_cast<std::uint8_t>(random_() % 65);
    }
    scores.push_back(truth_.other);
    const double t = trace.sampling.temperature > 0 ? trace.sampling.temperature : 1.0;
    std::vector<double> weights;
    double sum = 0, sum_at_one = 0;
    for (const double score : scores) {
      weights.push_back(std::exp(score / t));
      sum += weights.back();
      sum_at_one += std::exp(score);
    }
    std::discrete_distribution<std::size_t> draw(weights.begin(), weights.end());
    const std::size_t emitted = draw(random_);
    const auto token_of = [&](std::size_t i) {
      return i + 1 == scores.size() ? kOther : TokenId(100 + i);
    };
    std::vector<std::size_t> order(scores.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::sort(order.begin(), order.end(), [&](auto a, auto b) { return scores[a] > scores[b]; });
    for (const std::size_t i : order) {
      generated.top_ids.push_back(token_of(i));
      generated.top_logits.push_back(static_cast<float>(scores[i]));
    }
    generated.log_sum_exp = static_cast<float>(std::log(sum_at_one));
    generated.logprob = static_cast<float>(std::log(weights[emitted] / sum));
    trace.tokens.push_back(token_of(emitted));
  }

  std::mt19937_64 random_;
  FusionTable truth_;
  std::uint64_t requests_ = 0;
};

}  // namespace foretoken::trainer
