#include "runtime/speculate/cost_model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace foretoken {
namespace {

// A curve with the ridge of real CPUs: nearly flat while weights are read, then arithmetic takes
// over.
double known(int rows) {
  return rows <= 5 ? 8.0 * (1 + 0.03 * (rows - 1)) : 8.0 * (1.12 + 0.14 * (rows - 5));
}

TEST(CostModel, RecoversAKnownCurveUnderNoiseOutliersAndADriftingMachine) {
  CostModel model(16);
  std::mt19937 random(3);
  std::normal_distribution<> normal;
  double log_speed = 0;
  // Row counts in long runs, as traffic has them, so that drift and rows are confounded round by
  // round; a control round of one row now and then.
  int rows = 4;
  for (int i = 0; i < 6000; ++i) {
    if (i % 40 == 0) rows = 1 + static_cast<int>(random() % 9);
    const int now = random() % 30 == 0 ? 1 : rows;
    log_speed = 0.999 * log_speed + 0.01 * normal(random);  // +-25 % over minutes
    double ms = known(now) * std::exp(log_speed + 0.08 * normal(random));
    if (random() % 50 == 0) ms *= 5;  // descheduled
    model.observe(now, 0, ms);
  }
  for (int r = 1; r <= 9; ++r) {
    EXPECT_NEAR(model.relative(r) / model.relative(1), known(r) / known(1),
                0.05 * known(r) / known(1))
        << r;
  }
  EXPECT_NEAR(model.round_ms(4) / (known(4) * std::exp(log_speed)), 1.0, 0.12);
  for (int r = 2; r <= 16; ++r)
    EXPECT_GE(model.relative(r), model.relative(r - 1)) << "never cheaper with more rows";
}

TEST(CostModel, StartsFromThePriorAndScalesToTheFirstMeasurement) {
  CostModel model(8);
  EXPECT_NEAR(model.relative(3) / model.relative(1), 1.16, 1e-6);
  model.observe(2, 0, 54.0);
  EXPECT_NEAR(model.round_ms(1), 50.0, 1.0);
  EXPECT_NEAR(model.round_ms(5), 66.0, 1.5);
}

TEST(CostModel, UnmeasuredCountsLieBetweenMeasuredOnes) {
  CostModel model(12);
  for (int i = 0; i < 400; ++i) {
    model.observe(1, 0, 10);
    model.observe(7, 0, 20);
  }
  EXPECT_GT(model.relative(4), model.relative(1) * 1.2);
  EXPECT_LT(model.relative(4), model.relative(7) * 0.9);
  EXPECT_GE(model.relative(12), model.relative(7));
}

TEST(CostModel, LearnsWhatAttentionAddsWithContext) {
  CostModel model(8);
  std::mt19937 random(4);
  std::normal_distribution<> normal;
  for (int i = 0; i < 20000; ++i) {
    const double context = (i / 50 % 40) * 0.1;  // 0 .. 4k tokens, in thousands
    const int rows = 1 + static_cast<int>(random() % 6);
    model.observe(rows, rows * context,
                  (10 + 0.4 * (rows - 1) + 0.5 * rows * context) * std::exp(0.03 * normal(random)));
  }
  // Two more rows at 4k of context: 0.8 ms of linear layers and 4 ms of attention.
  const double added = model.round_ms(5, 20) - model.round_ms(3, 12);
  EXPECT_GT(added, 2.4);
  EXPECT_LT(added, 6.4);
}

TEST(CostModel, DraftStepsAreChargedCatchingUpIncluded) {
  CostModel model(8);
  for (int i = 0; i < 50; ++i) model.observe(1, 0, 10);
  EXPECT_EQ(model.costs().model_step * model.speed_ms(), 0);
  for (int i = 0; i < 20; ++i) model.observe_draft(2, i == 0 ? 30 : 6);
  EXPECT_NEAR(model.costs().model_step * model.speed_ms(), (30 + 19 * 6) / 40.0, 0.1);
}

TEST(CostModel, NonsenseIsIgnored) {
  CostModel model(4);
  model.observe(2, 0, 0);
  model.observe(2, 0, -1);
  model.observe(2, 0, std::nan(""));
  model.observe(0, 0, 5);
  model.observe(99, 0, 5);
  EXPECT_EQ(model.rounds(), 0);
}

}  // namespace
}  // namespace foretoken
