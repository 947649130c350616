// Tier 1 of the learned speculator: a recurrent head on fused features of the target, no attention
// and no KV cache. With H the target's hidden width, I its own inner width, V its vocabulary:
//   rms(x) = x / sqrt(mean(x^2) + 1e-6)
//   h      = fc [rms(low); rms(mid); rms(high); rms(final)]      features of the last position in
//   KV step(y): z = [rms(embedding(y)); rms(h)]
//            h = h + step z + down(silu(gate z) * (up z));  r = rms(h);  logit[v] = gain * out[v] .
//            r
// out: the target's own output rows of `vocab`, frozen. The first step of a draft consumes the
// newest token (which has no KV yet) and predicts the one after it; each further step consumes the
// drafted token. Every n-gram candidate c adds bias[class] + source[s] . r to its token's logit, s
// = 0 for the own context, 1, 2, 3 for traffic of order 2, 3, 4; a candidate outside `vocab` starts
// from the logit `outside`. Weights are Q8_0 or Q4_0 and meet int8 activations in the kernels of
// the target; a row's result does not depend on the other rows of a batch. Immutable and shared
// once made; the buffers are a HeadWorkspace's, of one thread.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "foretoken/kernels/linear.h"
#include "foretoken/kernels/thread_pool.h"
#include "runtime/model/vocabulary_rows.h"
#include "runtime/speculate/candidates.h"
#include "runtime/speculate/proposal.h"

namespace foretoken {

inline constexpr int kHeadTaps = 4;
inline constexpr int kHeadSources = 4;
inline constexpr std::int64_t kMaxHeadInner = 4096, kMaxHeadVocab = 32768;
inline constexpr float kHeadEpsilon = 1e-6f;

// The layers whose outputs are the features, low to high; n_layers is the final normalised state.
constexpr std::array<int, kHeadTaps> head_taps(int n_layers) {
  const int low = n_layers - 1 < 2 ? n_layers - 1 : 2;
  const int high = n_layers - 3 > 0 ? n_layers - 3 : 0;
  return {low, n_layers / 2, high, n_layers};
}

constexpr int head_source(std::uint8_t klass) {
  return klass < kOwnClasses ? 0
                             : 1 + (klass - kOwnClasses) / (kProbabilityBuckets * kCountBuckets);
}

// A matrix as a bundle carries it: ggml blocks, row-major.
struct HeadMatrix {
  kernels::WeightType type = kernels::WeightType::kQ8_0;
  std::vector<std::byte> rows;
};

// What a bundle carries, and what the trainer's twin is made from.
struct HeadParts {
  std::int64_t hidden = 0, inner = 0;
  std::vector<TokenId> vocab;  // [V] ascending, distinct; V a multiple of 16
  HeadMatrix fc;               // [H, 4H]
  HeadMatrix step;             // [H, 2H]
  HeadMatrix gate, up;         // [I, 2H]
  HeadMatrix down;             // [H, I]
  float gain = 0.1f, outside = 0;
  std::array<float, kFusionClasses> bias{};
  std::vector<float> source;  // [kHeadSources, H]
};

class HeadWorkspace;

class RecurrentHead {
 public:
  // Errors "shape: ..." and "non-finite: ...". Packs the weights: milliseconds, not for the engine
  // thread.
  static Result<std::shared_ptr<const RecurrentHead>> create(
      const HeadParts& parts, std::shared_ptr<const VocabularyRows> rows);

  std::int64_t hidden() const { return hidden_; }
  std::int64_t inner() const { return inner_; }
  std::span<const TokenId> vocab() const { return vocab_; }
  std::int64_t n_vocab() const { return rows_->n_vocab(); }  // of the target
  std::size_t step_bytes() const { return step_bytes_; }     // read by a step, of one row or many

  // Starts rows 0..n-1 from features [n, kHeadTaps, H] (as decoded from what is logged).
  void begin(const float* features, int n, HeadWorkspace& workspace,
             kernels::ThreadPool& pool) const;
  // One token a row for the workspace's rows: afterwards logits(i) and state(i) are of the next
  // position.
  void step(std::span<const TokenId> tokens, HeadWorkspace& workspace,
            kernels::ThreadPool& pool) const;
  // What row `row` proposes for the token at `position` (the t of the sampler's noise), candidates
  // added. coupled: with the request's noise, as the target chooses; else the most likely. raw =
  // softmax probability at the temperature. Changes the row's logits: once a step.
  Proposal choose(int row, const CandidateList& candidates, const SamplingParams& sampling,
                  std::int64_t position, bool coupled, HeadWorkspace& workspace) const;
  // The same of one row's logits [V], which change, and its state [H].
  Proposal choose(float* logits, const float* state, const CandidateList& candidates,
                  const SamplingParams& sampling, std::int64_t position, bool coupled) const;

  // A whole chain for tests and oracles: features [kHeadTaps, H]; out: [tokens.size(), V] without
  // candidates; states, if not null: r, [tokens.size(), H].
  void logits(const float* features, std::span<const TokenId> tokens, kernels::ThreadPool& pool,
              float* out, float* states = nullptr) const;

 private:
  RecurrentHead() = default;
  int slot_of(TokenId token) const;  // -1: outside

  std::shared_ptr<const VocabularyRows> rows_;
  std::int64_t hidden_ = 0, inner_ = 0;
  std::size_t step_bytes_ = 0;
  std::vector<TokenId> vocab_;
  Matrix fc_, step_, gate_, up_, down_, out_;
  float gain_ = 0, outside_ = 0;
  std::array<float, kFusionClasses> bias_{};
  std::vector<float> source_;
};

// Buffers of a batch of drafts. Allocated once; serves every head within its limits.
class HeadWorkspace {
 public:
  HeadWorkspace(int max_rows, std::int64_t hidden, std::int64_t max_inner = kMaxHeadInner,
                std::int64_t max_vocab = kMaxHeadVocab);
  int rows() const { return n_; }
  // Keeps the rows listed (ascending), in that order: row i is then what rows[i] was. Between two
  // steps.
  void keep(std::span<const int> rows);
  const float* logits(int row) const { return &logits_[std::size_t(row) * std::size_t(vocab_)]; }
  const float* state(int row) const { return &r_[std::size_t(row) * std::size_t(hidden_)]; }

 private:
  friend class RecurrentHead;
  std::int64_t hidden_, max_inner_, max_vocab_;
  std::int64_t vocab_ = 0;  // of the head that ran last
  int max_rows_, n_ = 0;
  kernels::Activations activations_;
  std::vector<float> ones_;            // [H]
  std::vector<float> x_;               // [rows, 4H]
  std::vector<float> h_, z_, branch_;  // [rows, H], [rows, 2H], [rows, H]
  std::vector<float> gate_, up_;       // [rows, I]
  std::vector<float> r_;               // [rows, H]
  std::vector<float> logits_;          // [rows, V]
};

}  // namespace foretoken
