// What a request says of how its tokens are chosen, and what penalties count.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "foretoken/protocol/ids.h"

namespace foretoken {

// As the request asked; defaults are "off".
struct SamplingParams {
  float temperature = 1.0f;
  std::int32_t top_k = 0;  // 0: off
  float top_p = 1.0f;
  float min_p = 0.0f;
  float presence_penalty = 0, frequency_penalty = 0, repetition_penalty = 1;
  std::vector<std::pair<TokenId, float>> logit_bias;
  std::uint64_t seed = 0;  // always set by admission
};

bool wants_penalties(const SamplingParams& params);

// Token counts for the penalties: of the prompt (repetition only) and of the output.
class TokenCounts {
 public:
  explicit TokenCounts(std::int64_t n_vocab)
      : prompt_(std::size_t(n_vocab)), output_(std::size_t(n_vocab)) {}
  void add_prompt(TokenId token) { prompt_[std::size_t(token)] = 1; }
  void add_output(TokenId token) { ++output_[std::size_t(token)]; }
  bool seen(std::size_t v) const { return prompt_[v] || output_[v] > 0; }
  int output(std::size_t v) const { return output_[v]; }

 private:
  std::vector<std::uint8_t> prompt_;
  std::vector<std::int32_t> output_;
};

}  // namespace foretoken
