// Offline evaluation: what it counts, what it predicts from, and that two bundles are compared as
// the gate compares them.
#include "runtime/evaluate/evaluation.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/unit/trainer/synthetic_traffic.h"

namespace foretoken {
namespace {

using trainer::SyntheticTraffic;
using trainer::true_table;

std::shared_ptr<const LearnedWeights> weights_of(const FusionTable& table) {
  auto weights = std::make_shared<LearnedWeights>();
  weights->fusion = table;
  return weights;
}

// Ten tokens whose candidates are right but at the fifth.
RequestTrace ten_tokens() {
  RequestTrace trace;
  trace.tokens = {1, 2};
  trace.n_prompt = 2;
  for (int i = 0; i < 10; ++i) {
    trace.tokens.push_back(10 + i);
    trace.generated.push_back({{{i == 4 ? 99 : 10 + i, 3}}, {}, {}, 0, 0});
  }
  return trace;
}

TEST(Evaluation, CountsRoundsAndPredictsFromTheirCosts) {
  EvaluationOptions options;
  options.draft_length = 2;
  options.costs = RoundCosts::measured(std::vector<float>{10, 12, 15}, 0, 0);
  Evaluation evaluation(options, initial_weights());
  evaluation.add(ten_tokens());
  // Rounds from 1 (1, 2, and 3), 4 (wrong), 5 (5, 6, and 7), 8 (8, and the last): drafts 2, 2,
  // 2, 1.
  const PortfolioFigures& fusion = evaluation.all().portfolios[2];
  EXPECT_EQ(fusion.tokens_per_round.candidate, 4);
  EXPECT_EQ(fusion.tokens_per_round.served, 9);
  EXPECT_EQ(fusion.accepted, 2 + 0 + 2 + 1);
  EXPECT_NEAR(fusion.speedup.candidate, 3 * 15 + 12, 1e-9);
  EXPECT_NEAR(fusion.speedup.served, 9 * 10, 1e-9);
  const PortfolioFigures& none = evaluation.all().portfolios[0];
  EXPECT_EQ(none.tokens_per_round.candidate, 9);
  EXPECT_NEAR(ratio_estimate(none.speedup).value, 1, 1e-12);
  EXPECT_FALSE(evaluation.has(3));  // no head
  EXPECT_EQ(evaluation.domains().at("").requests, 1);
  RequestTrace gap = ten_tokens();
  gap.gap = true;
  evaluation.add(gap);
  EXPECT_EQ(evaluation.all().requests, 1);
  EXPECT_EQ(evaluation.skipped(), 1);
}

TEST(Evaluation, DraftsThatDoNotPayAreNotDrafted) {
  EvaluationOptions options;
  options.plan = RoundPlan::kByCost;
  options.draft_length = 8;
  options.costs = RoundCosts::measured(std::vector<float>{10, 100, 200}, 0, 0);
  Evaluation evaluation(options, initial_weights());
  SyntheticTraffic traffic(1);
  for (int i = 0; i < 50; ++i) evaluation.add(traffic.next(0));
  // But for what the policy explores, at most half a per cent of the time: a draft takes 90 ms
  // more.
  const PortfolioFigures& automatic = evaluation.all().portfolios[4];
  EXPECT_LE(90.0 * double(automatic.drafted), 0.005 * automatic.speedup.served);
  EXPECT_NEAR(ratio_estimate(automatic.speedup).value, 1, 0.005);
}

TEST(Evaluation, AnIntervalCoversWhatMoreRequestsShow) {
  EvaluationOptions options;
  const auto estimate = [&](std::uint64_t seed, int n) {
    Evaluation evaluation(options, weights_of(true_table()));
    SyntheticTraffic traffic(seed);
    for (int i = 0; i < n; ++i) evaluation.add(traffic.next(0.8f));
    return ratio_estimate(evaluation.all().portfolios[2].tokens_per_round);
  };
  const double truth = estimate(1, 4000).value;
  int covered = 0;
  for (std::uint64_t seed = 100; seed < 140; ++seed) {
    const RatioEstimate e = estimate(seed, 50);
    covered += e.low <= truth && truth <= e.high;
  }
  EXPECT_GE(covered, 33);  // P(fewer | 0.95) < 0.1 %
}

TEST(CostsOfLog, AreTheMediansOfRoundsThatRanAlone) {
  CostsOfLog costs;
  RequestTrace trace;
  EXPECT_FALSE(costs.fit());
  const auto round = [&](int drafted, int rows, float ms) {
    RoundTrace r;
    r.drafted.assign(std::size_t(drafted), 1);
    r.rows = rows;
    r.verify_ms = ms;
    trace.rounds.push_back(r);
  };
  for (int i = 0; i < 25; ++i) {
    round(0, 1, i == 3 ? 500.0f : 20.0f);  // a descheduled round moves nothing
    round(2, 3, 24.0f);
    round(2, 7, 90.0f);  // others ran beside it
    round(4, 5, 30.0f);
  }
  round(3, 4, NAN);
  costs.add(trace);
  const auto fitted = costs.fit();
  ASSERT_TRUE(fitted);
  EXPECT_NEAR(fitted->round(1), 20, 1e-4);
  EXPECT_NEAR(fitted->round(2), 22, 1e-4);
  EXPECT_NEAR(fitted->round(3), 24, 1e-4);
  EXPECT_NEAR(fitted->round(5), 30, 1e-4);
  EXPECT_NEAR(fitted->round(9), 42, 1e-4);
}

TEST(BundleComparison, SaysWhatTheGateWould) {
  EvaluationOptions options;
  options.plan = RoundPlan::kByCost;
  options.draft_length = 8;
  FusionTable inverted = true_table();
  for (float& bias : inverted.bias) bias = -bias;
  BundleComparison better(options, {}, weights_of(true_table()), weights_of(inverted));
  BundleComparison worse(options, {}, weights_of(inverted), weights_of(true_table()));
  SyntheticTraffic traffic(3);
  for (int i = 0; i < 200; ++i) {
    const RequestTrace trace = traffic.next(0);
    better.add(trace);
    worse.add(trace);
  }
  EXPECT_EQ(better.verdict(), Verdict::kPromoted) << better.because();
  EXPECT_LT(better.decided_after(), 150);
  EXPECT_GT(better.figures().all.low, 0);
  EXPECT_EQ(worse.verdict(), Verdict::kInferior) << worse.because();
}

}  // namespace
}  // namespace foretoken
