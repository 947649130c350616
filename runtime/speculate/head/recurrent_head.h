// Tier 1 of the learned speculator: a recurrent head on fused features of the target, no attention
// and no KV cache. With H the target's hidden width, I its own inner width, V its vocabulary:
//   rms(x) = x / sqrt(mean(x^2) + 1e-6)
//   h = fc [rms(low); rms(mid); rms(high); rms(final)]    features of the last position with KV
//   step(y): z = [rms(embedding(y)); rms(h)]
//            h = h + step z + down(silu(gate z) * (up z));  r = rms(h)
//            logit[v] = gain * (out[v] . r)
// out: the target's own output rows of `vocab`, frozen. The first step of a draft consumes the
// newest token (which has no KV yet) and predicts the one after it; each further step consumes the
// drafted token. Candidates and choice: draft_head.h. Weights are Q8_0 or Q4_0 and meet int8
// activations in the kernels of the target.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "runtime/speculate/head/draft_head.h"

namespace foretoken {

inline constexpr std::int64_t kMaxHeadInner = 4096, kMaxHeadVocab = 32768;
inline constexpr float kHeadEpsilon = 1e-6f;

// A matrix as a bundle carries it: ggml blocks, row-major.
struct HeadMatrix {
  kernels::WeightType type = kernels::WeightType::kQ8_0;
  std::vector<std::byte> rows;
};

// What a bundle carries, and what the trainer's twin is made from. (Of the terms, `own` follows
// from candidate_gain.)
struct HeadParts : HeadTerms {
  std::int64_t hidden = 0, inner = 0;
  std::vector<TokenId> vocab;  // [V] ascending, distinct; V a multiple of 16
  HeadMatrix fc;               // [H, 4H]
  HeadMatrix step;             // [H, 2H]
  HeadMatrix gate, up;         // [I, 2H]
  HeadMatrix down;             // [H, I]
  float gain = 0.1f;
  std::array<float, kHeadSources> candidate_gain{};
  std::optional<HeadTaps> taps;  // the layers it was trained on; none: head_taps() of the target
};

class RecurrentHead final : public DraftHead {
 public:
  // Errors "shape: ...", "taps: ..." and "non-finite: ...". Packs the weights: milliseconds, not
  // for the engine thread.
  static Result<std::shared_ptr<const RecurrentHead>> create(
      const HeadParts& parts, std::shared_ptr<const VocabularyRows> rows);

  std::int64_t inner() const { return inner_; }
  const char* kind() const override { return "head"; }
  std::int64_t window() const override { return 1; }
  std::unique_ptr<HostHeadWorkspace> make_workspace(
      int max_rows,
      std::pmr::memory_resource* memory = std::pmr::get_default_resource()) const override;
  // HeadWorkspace::begin() of such a head from features [n, kHeadTaps, H] (as decoded from what is
  // logged).
  static void begin(const float* features, int n, HostHeadWorkspace& workspace,
                    kernels::ThreadPool& pool);

 private:
  class Workspace;
  RecurrentHead() = default;

  std::int64_t hidden_ = 0, inner_ = 0;
  Matrix fc_, step_, gate_, up_, down_, out_;
  float gain_ = 0;
};

}  // namespace foretoken
