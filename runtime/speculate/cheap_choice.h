// Which of the two cheap proposals for a position is drafted, or the head's, and what its outcome
// teaches: the same live and in a replay of the log. Two that name the same token are right more
// often than either alone, and against each other less, so each case has a calibration of its own.
// (With one calibration a kind, a margin for fusion and the larger of two estimates, which is often
// the luckier one, replays by cost were slower: `auto` over `ngram` alone 1.070 instead of 1.083 on
// the last 215 requests of an hour of the quickstart log with the 0.5B, 1.009 instead of 1.025 on
// earlier ones with an earlier version, 1.003 instead of 1.013 with the 135M.)
#pragma once

#include "runtime/speculate/acceptance_estimator.h"
#include "runtime/speculate/proposal.h"

namespace foretoken {

struct CheapChoice {
  Proposal proposal;  // empty: nothing known
  float confidence = 0;
  SpeculatorKind kind = SpeculatorKind::kNone;
};

// Either may be empty. calibrate(claim, raw): P(accepted | everything before it was).
template <class Calibrate>
CheapChoice choose_cheap(const Proposal& ngram, const Proposal& fusion,
                         const Calibrate& calibrate) {
  const auto choice = [&](Claim claim, const Proposal& proposal, SpeculatorKind kind) {
    return CheapChoice{proposal, calibrate(claim, proposal.raw), kind};
  };
  if (ngram.empty() && fusion.empty()) return {};
  if (ngram.empty()) return choice(Claim::kFusion, fusion, SpeculatorKind::kFusion);
  if (fusion.empty()) return choice(Claim::kNgram, ngram, SpeculatorKind::kNgram);
  if (ngram.token == fusion.token)
    return choice(Claim::kNgramAndFusion, ngram, SpeculatorKind::kNgram);
  const CheapChoice a = choice(Claim::kNgramAgainstFusion, ngram, SpeculatorKind::kNgram);
  const CheapChoice b = choice(Claim::kFusionAgainstNgram, fusion, SpeculatorKind::kFusion);
  return a.confidence > b.confidence ? a : b;
}

// Where the head ran, its proposal is drafted unless the cheap kinds are surer of theirs by this
// much: its logits have weighed their candidates already, and the larger of two estimates is often
// the luckier one (by the replays above: 0.4 % faster than with no margin, and with twice the
// margin).
inline constexpr float kHeadMargin = 0.1f;

struct HeadChoice {
  Claim claim;
  float confidence;  // in the head's proposal
  bool taken;        // and not the cheap one
};

// The head's proposal, never empty, against the cheap choice for the same position. pure: nothing
// but the head may draft. calibrate as above.
template <class Calibrate>
HeadChoice choose_head(const Proposal& head, const CheapChoice& cheap, bool pure,
                       const Calibrate& calibrate) {
  const bool agrees = !pure && head.token == cheap.proposal.token;
  const Claim claim = agrees ? Claim::kHeadAndCheap : Claim::kHead;
  const float confidence = calibrate(claim, head.raw);
  return {claim, confidence, pure || agrees || confidence + kHeadMargin >= cheap.confidence};
}

// score(claim, raw, hit) for all that was claimed of the position at which `token` came.
template <class Score>
void score_cheap(const Proposal& ngram, const Proposal& fusion, TokenId token, const Score& score) {
  if (!ngram.empty()) score(Claim::kNgram, ngram.raw, ngram.token == token);
  if (!fusion.empty()) score(Claim::kFusion, fusion.raw, fusion.token == token);
  if (ngram.empty() || fusion.empty()) return;
  if (ngram.token == fusion.token) {
    score(Claim::kNgramAndFusion, ngram.raw, ngram.token == token);
  } else {
    score(Claim::kNgramAgainstFusion, ngram.raw, ngram.token == token);
    score(Claim::kFusionAgainstNgram, fusion.raw, fusion.token == token);
  }
}

}  // namespace foretoken
