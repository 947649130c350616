// What outcomes teach of the kinds' confidences.
#include "runtime/speculate/kind_calibration.h"

#include <gtest/gtest.h>

#include <random>

namespace foretoken {
namespace {

// Two that name the same token are believed for what they were worth together, one against the
// other for what it was worth then: the same proposal, with another confidence.
TEST(KindCalibration, AgreementAndDisagreementAreLearnedApart) {
  KindCalibration calibration;
  SamplingParams greedy;
  greedy.temperature = 0;
  const DraftContext context{.sampling = &greedy};
  std::mt19937 random(4);
  const auto by = [](SpeculatorKind kind, TokenId token, float raw) {
    return Proposal{.token = token, .raw = raw, .kind = kind};
  };
  const auto both = [&](TokenId ngram, TokenId fusion) {
    return ProposalList{by(SpeculatorKind::kNgram, ngram, .5f),
                        by(SpeculatorKind::kFusion, fusion, .4f)};
  };
  // Together they are right four times in five; against each other the table mostly is.
  for (int i = 0; i < 4000; ++i) {
    const bool same = i % 2 == 0;
    const auto coin = random() % 10;
    const TokenId came = same ? (coin < 8 ? 1 : 3) : coin < 2 ? 1 : coin < 8 ? 2 : 3;
    Forms forms;  // of a new sequence each time: nothing but the claims tells them apart
    calibration.learn(context, forms, both(1, same ? 1 : 2), came);
  }
  const auto choose = [&](const ProposalList& said) {
    return DraftPolicy::choose(calibration.offers(context, Forms(), said, 0));
  };
  const Offer same = choose(both(1, 1));
  EXPECT_EQ(same.token, 1);
  EXPECT_NEAR(same.confidence, .8f, .08f);
  const Offer other = choose(both(1, 2));
  EXPECT_EQ(other.kind, SpeculatorKind::kFusion);
  EXPECT_EQ(other.token, 2);
  EXPECT_NEAR(other.confidence, .6f, .08f);
  // Alone each is believed for all it said.
  EXPECT_NEAR(choose({by(SpeculatorKind::kNgram, 1, .5f)}).confidence, .5f, .08f);
  EXPECT_NEAR(choose({by(SpeculatorKind::kFusion, 2, .4f)}).confidence, .7f, .08f);
  EXPECT_TRUE(choose({}).empty());
}

// Of a head's walk the positions up to the first token that was not drafted: what it said past it
// followed tokens that never came.
TEST(KindCalibration, AHeadIsJudgedUpToTheFirstTokenThatWasNotDrafted) {
  SamplingParams greedy;
  greedy.temperature = 0;
  const DraftContext context{.sampling = &greedy};
  const auto says = [](TokenId token) {
    return HeadPosition{{token, .5f, .5f, SpeculatorKind::kHead}, token, {}};
  };
  const Claim claim{SpeculatorKind::kHead};
  const auto estimate_after = [&](std::vector<HeadPosition> positions, std::vector<TokenId> came) {
    KindCalibration calibration;
    for (int i = 0; i < 200; ++i) {
      Forms forms;
      calibration.learn_head(context, forms, positions, came);
    }
    return calibration.estimate(context, Forms(), claim, .5f, 0);
  };
  const float right = estimate_after({says(1)}, {1}), wrong = estimate_after({says(1)}, {2});
  EXPECT_GT(right, .9f);
  EXPECT_LT(wrong, .1f);
  // The second position's "hit" is not one: the first was wrong.
  EXPECT_EQ(estimate_after({says(1), says(3)}, {2, 3}), wrong);
  // One that was not emitted says nothing.
  EXPECT_EQ(estimate_after({says(1), says(3)}, {1}), right);
  // A cheap kind's token was drafted where the head said another: the walk goes on.
  const HeadPosition other{{7, .5f, .5f, SpeculatorKind::kHead}, 1, {}};
  EXPECT_LT(estimate_after({other, other}, {1, 1}), .1f);
}

}  // namespace
}  // namespace foretoken
