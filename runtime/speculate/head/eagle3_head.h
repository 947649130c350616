// An EAGLE-3 head (eagle3_checkpoint.h) on our kernels: one transformer layer over the positions of
// a sequence. With x_p the token at p and f_p the target's taps there (of what processed x_p), the
// row of position p is
//   h = fc [f_low; f_mid; f_high]          (normed before, as the configuration says)
//   z = [norm_e(embedding(x_{p+1})); norm_h(h)];  q, k, v from z, rotary at p, halves
//   h = h + o attention(q; k, v of the window's rows);  h = h + mlp(norm_m(h))
//   logits over the draft vocabulary = lm_head norm(h), of the token at p + 2
// (with norm_before_residual the first h is norm_h(h)). A drafted step reads the row before's h
// (norm(h) with norm_output) in place of fc's. Keys and values of a row depend on x_{p+1} and f_p
// alone, so they are kept between rounds, caught up from the features when a round begins, and
// built again from them after a swap, after rounds without the head, after anything: the same
// numbers either way. A row sees the last window() rows, fewer where features begin later.
// Weights are rounded to Q8_0 for serving, half the bytes of bf16 at a thousandth of the logits'
// spread (tests/unit/speculate/head/eagle3_head_test.cpp); the gate and the judge replay with the
// same.
#pragma once

#include <memory>
#include <vector>

#include "runtime/model/rope_scaling.h"
#include "runtime/speculate/head/draft_head.h"
#include "runtime/speculate/head/eagle3_checkpoint.h"

namespace foretoken {

struct Eagle3Options {
  bool as_stored = false;  // the checkpoint's own precision, for tests against a reference
  std::int64_t window = kHeadWindow;  // rows a row sees, itself included
};

class Eagle3Head final : public DraftHead {
 public:
  // Errors as eagle3_parts()'s, and "shape: ..." where it does not fit the target. Copies and packs
  // the weights: not for the engine thread.
  static Result<std::shared_ptr<const Eagle3Head>> create(
      const Eagle3Checkpoint& checkpoint, const HeadTerms& terms,
      std::shared_ptr<const VocabularyRows> rows, const Eagle3Options& options = {});

  const Eagle3Config& config() const { return config_; }
  const char* kind() const override { return "eagle3"; }
  std::int64_t window() const override { return window_; }
  std::size_t memory_floats() const override;
  std::unique_ptr<HostHeadWorkspace> make_workspace(
      int max_rows,
      std::pmr::memory_resource* memory = std::pmr::get_default_resource()) const override;

 private:
  class Workspace;
  Eagle3Head() = default;
  void embed(TokenId token, float* out) const;
  void store(std::int64_t position, const float* k, const float* v, HeadMemory& memory) const;
  void attend(const float* q, std::int64_t position, const HeadMemory& memory, int head,
              float* scores, float* out) const;
  std::int64_t q_width() const { return std::int64_t(config_.n_heads) * config_.head_dim; }
  std::int64_t kv_width() const { return std::int64_t(config_.n_kv_heads) * config_.head_dim; }

  Eagle3Config config_;
  Rope rope_;
  std::int64_t window_ = 0, capacity_ = 0;  // rows seen, rows kept
  Matrix fc_, q_, k_, v_, o_, gate_, up_, down_, lm_head_;
  std::vector<float> input_norm_;                        // [3 hidden()] or empty
  std::array<std::vector<float>, kEagle3Taps> fc_norm_;  // [hidden()] or empty
  std::vector<float> input_layernorm_, hidden_norm_, post_attention_layernorm_, norm_;  // [H]
  std::vector<std::byte> embedding_;  // rows as stored; empty: the target's are used
  kernels::WeightType embedding_type_ = kernels::WeightType::kF32;
};

}  // namespace foretoken
