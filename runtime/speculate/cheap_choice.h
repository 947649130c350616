// What the kinds say of one position, as offers to the draft policy, and what its outcome teaches:
// the same live and in a replay of the log. Two that name the same token are right more often than
// either alone, and against each other less, so each case has a calibration of its own.
// (With one calibration a kind, a margin for fusion and the larger of two estimates, which is often
// the luckier one, replays by cost were slower: `auto` over `ngram` alone 1.070 instead of 1.083 on
// the last 215 requests of an hour of the quickstart log with the 0.5B, 1.009 instead of 1.025 on
// earlier ones with an earlier version, 1.003 instead of 1.013 with the 135M.)
#pragma once

#include "runtime/speculate/acceptance_estimator.h"
#include "runtime/speculate/draft_policy.h"
#include "runtime/speculate/proposal.h"

namespace foretoken {

// Either may be empty. calibrate(claim, raw): P(accepted | everything before it was).
template <class Calibrate>
OfferList cheap_offers(const Proposal& ngram, const Proposal& fusion, const Calibrate& calibrate) {
  OfferList offers;
  const auto push = [&](Claim claim, const Proposal& proposal, SpeculatorKind kind) {
    offers.push({proposal.token, proposal.raw, calibrate(claim, proposal.raw), kind});
  };
  if (ngram.empty() && fusion.empty()) return offers;
  if (ngram.empty()) {
    push(Claim::kFusion, fusion, SpeculatorKind::kFusion);
  } else if (fusion.empty()) {
    push(Claim::kNgram, ngram, SpeculatorKind::kNgram);
  } else if (ngram.token == fusion.token) {
    push(Claim::kNgramAndFusion, ngram, SpeculatorKind::kNgram);
  } else {
    push(Claim::kNgramAgainstFusion, ngram, SpeculatorKind::kNgram);
    push(Claim::kFusionAgainstNgram, fusion, SpeculatorKind::kFusion);
  }
  return offers;
}

inline Claim head_claim(bool agrees) { return agrees ? Claim::kHeadAndCheap : Claim::kHead; }

// The head's proposal, never empty, beside the cheap kinds' choice for the same position. alone:
// nothing but the head may draft. calibrate as above.
template <class Calibrate>
Offer head_offer(const Proposal& head, const Offer& cheap, bool alone, const Calibrate& calibrate) {
  Offer offer{head.token, head.raw, 0, SpeculatorKind::kHead};
  offer.agrees = !alone && !cheap.empty() && head.token == cheap.token;
  offer.confidence = calibrate(head_claim(offer.agrees), head.raw);
  return offer;
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
