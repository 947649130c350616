// The recurrent head in LibTorch: the twin of runtime/speculate/head, which has the formulas, in
// fp32. It trains, and it can be made from a bundle's parts, with the values the server serves,
// dequantised. One of the few headers that name torch. One thread.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "runtime/speculate/head/recurrent_head.h"
#include "trainer/head/torch_headers.h"

namespace foretoken::trainer {

// fp32 (but for a rounded_copy()), contiguous. `step`, `gate` and `up` share their input and are
// one matrix.
struct HeadParameters {
  torch::Tensor fc;              // [H, 4H]
  torch::Tensor inner;           // [H + 2 I, 2H]: step, gate, up
  torch::Tensor down;            // [H, I]
  torch::Tensor gain;            // [1]
  torch::Tensor source;          // [kHeadSources, H]
  torch::Tensor bias;            // [kFusionClasses]
  torch::Tensor outside;         // [1]
  torch::Tensor candidate_gain;  // [kHeadSources]

  std::int64_t hidden() const { return fc.size(0); }
  std::int64_t inner_width() const { return down.size(1); }
  // Learned by gradient steps over everything; learned on fresh positions alone. (The gain is
  // neither: its steps are a share of itself.)
  std::vector<torch::Tensor> weights() const { return {fc, inner, down, source}; }
  std::vector<torch::Tensor> table() const { return {bias, outside, candidate_gain}; }
  std::vector<torch::Tensor> all() const {
    return {fc, inner, down, gain, source, bias, outside, candidate_gain};
  }

  HeadParameters clone() const;
  // What a step is computed with in bf16: fc, inner and down rounded, leaves of their own; the rest
  // shared with this.
  HeadParameters rounded_copy() const;
  // As a head begins: runtime/speculate/head/initial_head.h, before rounding.
  static HeadParameters initial(std::int64_t hidden, std::int64_t inner, std::int64_t n_vocab,
                                std::uint64_t seed);
  static HeadParameters zeros(std::int64_t hidden, std::int64_t inner);

  // Rounded for serving (Q4_0), and back with the values as rounded: parts -> parameters -> parts
  // gives the same bytes.
  HeadParts parts(std::vector<TokenId> vocab) const;
  static Result<HeadParameters> of(const HeadParts& parts);
};

// Products in bf16 where the processor has AMX for it (four times the speed of fp32 there;
// elsewhere slower), so the same on one machine from run to run.
torch::ScalarType fast_product_type();
// a w^T in w's type, fp32 in and out.
torch::Tensor product(const torch::Tensor& a, const torch::Tensor& w);

// The recurrence. x: features [n, 4H], each tap's rms one; embedded: one [n, H] a step, each row's
// rms one. Returns r of every step, step-major: [n_steps * n, H].
torch::Tensor run_head(const HeadParameters& head, const torch::Tensor& x,
                       const std::vector<torch::Tensor>& embedded);
torch::Tensor unit_rms(const torch::Tensor& x);  // over the last dimension, kHeadEpsilon

// The draft vocabulary with its frozen output rows, and where each token of the target is in it.
struct HeadVocabulary {
  std::vector<TokenId> tokens;        // ascending
  torch::Tensor rows;                 // [V, H], of the products' type
  std::vector<std::int32_t> slot_of;  // [n_vocab], -1: outside

  HeadVocabulary(std::vector<TokenId> tokens_in, const VocabularyRows& model,
                 torch::ScalarType type = torch::kFloat32);
};

}  // namespace foretoken::trainer
