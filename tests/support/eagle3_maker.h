// Random EAGLE-3 checkpoints: every shape and flag of a published one, in kilobytes.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/speculate/head/eagle3_checkpoint.h"

namespace foretoken::testing {

struct RandomEagle3 {
  Eagle3Config config;  // hidden, ffn, heads, vocabularies and flags; the rest has defaults
  Eagle3Format format = Eagle3Format::kSpeculators;
  SafetensorType type = SafetensorType::kBF16;
  bool own_embedding = false;
  int n_layers = 3;            // of the target
  std::vector<TokenId> vocab;  // [n_draft_vocab]; empty: evenly over the target's
  float logit_scale = 1;
  std::uint64_t seed = 1;
};

// hidden 128, two heads of 64 over one of keys and values, ffn 192, 320 tokens of which 96 may be
// drafted: a head of the tiny model (gguf_writer.h).
RandomEagle3 tiny_eagle3();
Eagle3Checkpoint random_eagle3(const RandomEagle3& options);

// A tensor of that type from floats, rounded as it needs, and its values.
Eagle3Tensor encoded(SafetensorType type, std::vector<std::int64_t> shape,
                     const std::vector<float>& values);
std::vector<float> decoded(const Eagle3Tensor& tensor);

}  // namespace foretoken::testing
