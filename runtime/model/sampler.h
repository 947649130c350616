// The target's side of drafter-invariant sampling (kernels/sampling.h): filters on one row of
// logits, then the Gumbel-coupled choice. A row's token is a function of (logits, parameters,
// history, position) alone. Owned by the engine thread; buffers are reused from row to row.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "foretoken/protocol/ids.h"
#include "runtime/model/sampling_params.h"

namespace foretoken {

class Sampler {
 public:
  explicit Sampler(std::int64_t n_vocab) : n_vocab_(n_vocab) {}

  // Prepares one row: bias and penalties in place (counts may be null if wants_penalties() is
  // false), then temperature, top-k, top-p, min-p. `logits`: [n_vocab], changed; must stay valid
  // until the next prepare(), as must `maxima`: those of the row's summary (kernels/sampling.h), or
  // null where bias, penalties or rejection sampling change the row.
  void prepare(float* logits, const SamplingParams& params, const TokenCounts* counts,
               const float* maxima = nullptr);

  // The token at absolute position `position`, with the request's seed.
  TokenId sample(std::uint64_t position) const;
  // Whether top-k, top-p or min-p left a part of the vocabulary.
  bool filtered() const { return !full_; }
  // log p(token) after temperature and filters; -inf if filtered out. At T = 0: 0 for the argmax,
  // else -inf.
  double logprob(TokenId token) const;

  // Speculative rejection sampling (Leviathan et al. 2023): whether a draft that came from
  // `support` (its distribution, sparse; empty: a point mass) is the token. If not, what is sampled
  // of the row from now on comes from what is left, where further drafts for it are tried in turn
  // (attempt 0, 1, ...).
  bool accepts(TokenId draft, std::span<const std::pair<TokenId, float>> support,
               std::uint64_t position, std::uint32_t attempt);

 private:
  std::int64_t n_vocab_;
  float* logits_ = nullptr;
  const float* maxima_ = nullptr;
  float inv_temperature_ = 0;
  std::uint64_t seed_ = 0;
  bool full_ = true;               // no filter: the whole vocabulary
  std::vector<std::int32_t> ids_;  // the filtered set, by logit descending, then id
  std::vector<float> values_;
  mutable double lse_ = 0;
  mutable bool have_lse_ = false;
  double log_normaliser() const;
};

}  // namespace foretoken
