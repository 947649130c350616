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

// calls(claim, proposal) for each token that is named, as the first kind that names it claims it.
template <class Call>
void for_each_claim(const ProposalList& said, const Call& call) {
  for (int i = 0; i < said.n; ++i) {
    bool first = true, with = false;
    for (int j = 0; j < said.n; ++j) {
      if (j == i || said[j].token != said[i].token) continue;
      (j < i ? first : with) = j > i;
    }
    if (!first) continue;
    const Agreement agreement =
        said.n == 1 ? Agreement::kAny : (with ? Agreement::kWith : Agreement::kAgainst);
    call(Claim{said[i].kind, agreement}, said[i]);
  }
}

// calibrate(claim, raw): P(accepted | everything before it was).
template <class Calibrate>
OfferList cheap_offers(const ProposalList& said, const Calibrate& calibrate) {
  OfferList offers;
  for_each_claim(said, [&](Claim claim, const Proposal& p) {
    offers.push({p.token, p.raw, calibrate(claim, p.raw), p.kind});
  });
  return offers;
}

inline Claim head_claim(bool agrees) {
  return {SpeculatorKind::kHead, agrees ? Agreement::kWith : Agreement::kAny};
}

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
void score_cheap(const ProposalList& said, TokenId token, const Score& score) {
  for (int i = 0; i < said.n; ++i) score(Claim{said[i].kind}, said[i].raw, said[i].token == token);
  if (said.n < 2) return;
  for_each_claim(said,
                 [&](Claim claim, const Proposal& p) { score(claim, p.raw, p.token == token); });
}

}  // namespace foretoken
