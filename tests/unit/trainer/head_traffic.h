// Traffic that a recurrent head can learn and n-gram candidates cannot: the next token is a fixed
// function of the last one, most of the time, and no candidates are logged.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "foretoken/protocol/trace_record.h"
#include "runtime/model/feature_rows.h"
#include "tests/unit/trainer/synthetic_traffic.h"
#include "trainer/learner/learner.h"

namespace foretoken::trainer {

class HeadTraffic {
 public:
  HeadTraffic(std::int64_t hidden, int n_vocab, std::uint64_t seed, double follows = 0.85)
      : random_(seed), hidden_(hidden), next_(std::size_t(n_vocab)), follows_(follows) {
    std::iota(next_.begin(), next_.end(), 0);
    std::mt19937_64 fixed(99);  // the same language whatever the seed
    std::shuffle(next_.begin(), next_.end(), fixed);
  }

  RequestTrace request(int n_prompt, int n_generated, float temperature = 0,
                       bool with_candidates = false) {
    RequestTrace trace;
    trace.server_run = 1;
    trace.request = {++requests_};
    trace.model_fingerprint = test_fingerprint();
    trace.sampling.temperature = temperature;
    trace.n_prompt = n_prompt;
    for (int i = 0; i < n_prompt; ++i) trace.tokens.push_back(any());
    for (int i = 0; i < n_generated; ++i) add(trace, with_candidates);
    // Hidden states say nothing here: noise.
    trace.n_taps = kHeadTaps;
    trace.tap_width = std::int32_t(hidden_);
    trace.tap_first = 0;
    std::normal_distribution<float> normal(0, 3);
    std::vector<float> taps(std::size_t(kHeadTaps * hidden_));
    for (int position = 0; position + 1 < n_prompt + n_generated; ++position) {
      for (float& v : taps) v = normal(random_);
      const std::size_t at = trace.tap_values.size();
      trace.tap_values.resize(at + taps.size());
      trace.tap_scales.resize(trace.tap_scales.size() + kHeadTaps);
      encode_features(taps.data(), hidden_, &trace.tap_values[at],
                      &trace.tap_scales[trace.tap_scales.size() - kHeadTaps]);
    }
    return trace;
  }

 private:
  TokenId any() { return TokenId(random_() % next_.size()); }
  void add(RequestTrace& trace, bool with_candidates) {
    const TokenId likely = next_[std::size_t(trace.tokens.back())];
    GeneratedTokenTrace& generated = trace.generated.emplace_back();
    const TokenId token = double(random_() >> 11) * 0x1p-53 < follows_ ? likely : any();
    const float p_rest = static_cast<float>((1 - follows_) / double(next_.size()));
    generated.top_ids = {likely};
    generated.top_logits = {std::log(static_cast<float>(follows_) + p_rest)};
    for (int i = 0; i < 7; ++i) {
      const TokenId other = any();
      if (std::ranges::find(generated.top_ids, other) != generated.top_ids.end()) continue;
      generated.top_ids.push_back(other);
      generated.top_logits.push_back(std::log(p_rest));
    }
    generated.log_sum_exp = 0;
    const bool top = token == likely;
    generated.logprob = top ? generated.top_logits[0] : generated.top_logits[1];
    if (with_candidates) {
      generated.candidates = {{random_() % 2 ? likely : any(), std::uint8_t(random_() % 5)},
                              {any(), std::uint8_t(5 + random_() % 60)},
                              {any(), std::uint8_t(5 + random_() % 60)}};
    }
    trace.tokens.push_back(token);
  }

  std::mt19937_64 random_;
  std::int64_t hidden_;
  std::vector<TokenId> next_;
  double follows_;
  std::uint64_t requests_ = 0;
};

// A buffer in memory.
class Traces final : public TraceSource {
 public:
  std::vector<RequestTrace> all;
  std::optional<RequestTrace> trace(std::uint64_t sequence) const override {
    if (sequence >= all.size()) return std::nullopt;
    return all[sequence];
  }
  std::uint64_t oldest_sequence() const override { return 0; }
};

// Shows `requests` more requests and does all the work that is due. Returns passes over a token of
// theirs.
inline double learn(Learner& learner, Traces& traces, HeadTraffic& traffic, int requests,
                    const std::string& domain = "") {
  const LearnerFacts before = learner.facts();
  for (int i = 0; i < requests; ++i) {
    traces.all.push_back(traffic.request(6, 60));
    traces.all.back().domain = domain;
    learner.observe(traces.all.size() - 1, traces.all.back());
    while (learner.work(0)) {
    }
  }
  const LearnerFacts after = learner.facts();
  return double(after.positions - before.positions) /
         double(after.trained_tokens - before.trained_tokens);
}

}  // namespace foretoken::trainer
