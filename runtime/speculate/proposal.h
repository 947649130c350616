// What the two cheap speculators say about one position, as pure functions of its candidate list:
// used live, to score in the shadow what was not drafted, and to replay a log exactly.
#pragma once

#include <cstdint>

#include "foretoken/protocol/bounded_vector.h"
#include "foretoken/protocol/ids.h"
#include "runtime/model/sampling_params.h"
#include "runtime/speculate/fusion_table.h"

namespace foretoken {

inline constexpr int kProposalClasses = kFusionClasses;  // of one kind, at most

struct Proposal {
  TokenId token = -1;  // -1: nothing to propose
  float raw = 0;       // the speculator's own confidence, before calibration
  // by_class: raw is what proposals of this kind and class are worth before any came
  // (KindCalibration); of ngram the class of the candidate it chose.
  std::uint8_t fusion_class = 0;
  bool by_class = false;
  SpeculatorKind kind = SpeculatorKind::kNone;  // whose it is
  bool empty() const { return token < 0; }
};

// What the kinds say of one position, in the order of the registry's rows; none is empty.
inline constexpr std::size_t kMostKinds = 4;  // that propose position by position
using ProposalList = BoundedVector<Proposal, kMostKinds>;

// Scores of the distinct tokens among a position's candidates.
struct TokenScore {
  TokenId token = 0;
  float score = 0;
};
struct TokenScores : BoundedVector<TokenScore, kMaxCandidates> {
  float& of(TokenId token, float first) {  // `first`, where it is new
    for (TokenScore& s : *this)
      if (s.token == token) return s.score;
    push_back({token, first});
    return back().score;
  }
  void add_bias(TokenId token, float bias) {  // where it is among them
    for (TokenScore& s : *this)
      if (s.token == token) s.score += bias;
  }
};

// The fixed rule: the continuation of the longest match, of the own context's suffix and of traffic
// (most frequent first); the own context's of two equally long. By class. (At drafts of 5: 2.188
// tokens a round on 219 requests of the quickstart log with the 0.5B, 2.119 on GSM8K with the
// 135M; 2.137 and 2.102 where the own context had to match 3 tokens and then came before any
// traffic.)
Proposal propose_ngram(const CandidateList& candidates);

// Tier 0 of the learned speculator. position: the absolute index of the proposed token, which is
// the t of the sampler's noise.
//   T = 0: the token of the highest summed bias; raw = q(token), "something else" included.
//   T > 0: argmax of score / T + gumbel(seed, t, token), the target's own noise (Gumbel coupling:
//   Daliri et al. 2024); raw = P(no other token beats it) = exp(-exp(other / T - M)), M the
//   winner's noisy score, because the maximum of score / T + gumbel over the tokens that are no
//   candidates is Gumbel-distributed around the logarithm of their mass.
// coupled = false (rejection sampling: a draft must not know the noise): the argmax as at T = 0,
// raw = q(token) at temperature T. logit_bias is added to the candidates' scores. Presence,
// frequency and repetition penalties and top-k, top-p, min-p are not applied to the draft's scores:
// a request that uses them is served exactly, and accepts a little less.
Proposal propose_fusion(const CandidateList& candidates, const FusionTable& table,
                        const SamplingParams& sampling, std::int64_t position, bool coupled = true);

}  // namespace foretoken
