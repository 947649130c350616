// How a request's tokens are chosen: what the sampler obeys and the speculators draft by.
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

}  // namespace foretoken
