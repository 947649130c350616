// What the kinds' confidences are worth: every offer to the draft policy gets its calibrated
// confidence here, and every position's outcome is learned here, by one piece of code for the
// engine (DraftSources) and for a replay of the log (PortfolioReplay). Two kinds that name the same
// token are right more often than either alone, and against each other less, so each case (Claim)
// has a calibration of its own. Plain state, may be copied; one thread; nothing allocates.
// (With one calibration a kind, a margin for fusion and the larger of two estimates, which is often
// the luckier one, replays by cost were slower: `auto` over `ngram` alone 1.070 instead of 1.083 on
// the last 215 requests of an hour of the quickstart log with the 0.5B, 1.009 instead of 1.025 on
// earlier ones with an earlier version, 1.003 instead of 1.013 with the 135M.)
#pragma once

#include <array>
#include <span>

#include "runtime/speculate/acceptance_estimator.h"
#include "runtime/speculate/draft_policy.h"
#include "runtime/speculate/estimators.h"
#include "runtime/speculate/speculator.h"

namespace foretoken {

inline constexpr std::size_t kLiftBins = 7;  // of the cheap kinds' confidence
using Forms = std::array<Form, kClaims>;     // of one sequence, by claim

class KindCalibration {
 public:
  // What a new sequence starts from: the form of recent traffic.
  const Forms& traffic(bool sampled) const { return traffic_[sampled]; }

  // What the cheap kinds said of a position, as offers. depth: drafted positions before it, taken
  // as right.
  OfferList offers(const DraftContext& of, const Forms& forms, const ProposalList& said,
                   int depth) const;
  // The head's proposal, never empty, beside the cheap kinds' choice for the same position. alone:
  // nothing but the head may draft.
  Offer head_offer(const DraftContext& of, const Forms& forms, const Proposal& head,
                   const Offer& cheap, bool alone, int depth) const;
  // The chance that what is drafted with the head is accepted, before it runs. cheap: the
  // confidence of the best cheap offer, 0 where there is none.
  float expect_head(const DraftContext& of, float cheap) const;
  // P(accepted | the `depth` positions before it were), and that of a position not drafted yet.
  float estimate(const DraftContext& of, const Forms& forms, Claim claim, float raw,
                 int depth) const;
  float expect(const DraftContext& of, const Forms& forms, Claim claim, int depth) const;

  // One proposal whose preceding tokens were all right: was it right too?
  void score(const DraftContext& of, Forms& forms, Claim claim, float raw, bool hit);
  // All that the cheap kinds said of the position at which `token` came.
  void learn(const DraftContext& of, Forms& forms, const ProposalList& said, TokenId token);
  // Every position at which the head ran and everything before it was right: what was trimmed away
  // or left to another kind counts as well.
  void learn_head(const DraftContext& of, Forms& forms, std::span<const HeadPosition> positions,
                  std::span<const TokenId> emitted);

 private:
  ProposalList rated(const ProposalList& said, bool sampled) const;

  AcceptanceEstimator acceptance_;
  // How often what a kind proposed was right, by the class it gave (Proposal::by_class): its raw
  // confidence. [kind and class][sampled]
  std::array<std::array<ForgettingMean, 2>, kSpeculatorKinds * kProposalClasses> rates_{};
  // What the head adds to a position's acceptance, by what the cheap kinds say of it: was the
  // choice with it right, less was theirs? In pairs, because the better of two calibrated
  // confidences promises a little too much, and would hide what the head finds. [sampled][bin]
  std::array<std::array<ForgettingMean, kLiftBins>, 2> lift_{};
  std::array<Forms, 2> traffic_;  // [sampled]
};

}  // namespace foretoken
