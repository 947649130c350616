// An EAGLE-3 head in LibTorch, fp32: the twin of runtime/speculate/head/eagle3_head.h, which has
// the formulas. Made from a published checkpoint, it runs chains as a draft does, each from one row
// of a sequence over the head's own states and tokens that are given, so that gradients flow
// through all of it ("training-time test" in the paper); and it goes back into a checkpoint of the
// same names and types. One of the few headers that name torch. One thread.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "runtime/speculate/head/eagle3_checkpoint.h"
#include "trainer/head/torch_headers.h"

namespace foretoken::trainer {

struct Eagle3Parameters {
  Eagle3Config config;
  std::vector<TokenId> vocab;  // of the rows of lm_head
  torch::Tensor fc;            // [H, 3 target_hidden]
  torch::Tensor input_norm;    // [3 target_hidden], with norm_before_fc; else undefined
  torch::Tensor fc_norm;       // [3, target_hidden], with fc_norm; else undefined
  torch::Tensor input_layernorm, hidden_norm, post_attention_layernorm, norm;  // [H]
  torch::Tensor q, k, v, o;                                                    // as published
  torch::Tensor gate, up, down;
  torch::Tensor lm_head;    // [draft vocabulary, H]
  torch::Tensor embedding;  // [n_vocab, H], frozen; undefined: the target's

  // Errors as eagle3_parts()'s.
  static Result<Eagle3Parameters> of(const Eagle3Checkpoint& checkpoint);
  // Everything that learns, under the names of the older format.
  std::vector<std::pair<std::string, torch::Tensor>> named() const;
  // `like` with these values, rounded to its types: what `of` was made from, if nothing was
  // learned.
  Eagle3Checkpoint rounded_into(Eagle3Checkpoint like) const;
};

// Rows of one sequence: positions first ... first + rows - 1, of which the last n_chains each begin
// a chain.
struct Eagle3Segment {
  std::int64_t first = 0, n_chains = 0;
  torch::Tensor taps;      // [rows, 3 target_hidden]
  torch::Tensor embedded;  // [rows + n_steps - 1, H]: of the token after each position
};

// norm(h) of every step, step-major: [n_steps * n_chains, H]; times lm_head they are logits.
torch::Tensor run_eagle3(const Eagle3Parameters& head, const Eagle3Segment& segment, int n_steps,
                         std::int64_t window);

}  // namespace foretoken::trainer
