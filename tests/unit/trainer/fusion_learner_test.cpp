// Does it learn? On traffic whose best table is known, scored on requests it has not seen.
#include "trainer/head/fusion_learner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/unit/trainer/synthetic_traffic.h"
#include "trainer/learner/learner.h"

namespace foretoken::trainer {
namespace {

// Mean -log overlap, nats a position, over fresh requests.
double score(const FusionTable& table, float temperature, std::uint64_t seed = 1000) {
  SyntheticTraffic traffic(seed);
  double sum = 0, n = 0;
  for (int i = 0; i < 100; ++i) {
    for (const FusionPosition& position : fusion_positions(traffic.next(temperature))) {
      sum -= std::log(std::max(overlap(position, table), 1e-4));
      ++n;
    }
  }
  return sum / n;
}

FusionTable learn(float temperature, int requests, bool shuffled,
                  const Objective& objective = objectives().front()) {
  FusionLearnerOptions options;
  options.objective = &objective;
  FusionLearner learner(options, FusionTable::initial());
  SyntheticTraffic traffic(1);
  for (int i = 0; i < requests; ++i)
    learner.train(fusion_positions(traffic.next(temperature, 128, shuffled)));
  EXPECT_EQ(learner.step(), requests);
  return learner.average();
}

// Small tensors: threads would only wait for each other.
const bool kOneThread = [] {
  set_torch_threads(1);
  return true;
}();

TEST(FusionLearner, ApproachesTheKnownOptimum) {
  for (const float temperature : {0.0f, 0.8f}) {
    const double before = score(FusionTable::initial(), temperature),
                 best = score(true_table(), temperature);
    const double early = score(learn(temperature, 40, false), temperature);
    const double late = score(learn(temperature, 400, false), temperature);
    RecordProperty("before", std::to_string(before));
    EXPECT_LT(best, before);
    EXPECT_LT(early, before - 0.25 * (before - best))
        << before << " -> " << early << ", best " << best;
    EXPECT_LT(late, before - 0.90 * (before - best))
        << before << " -> " << late << ", best " << best;
    std::printf("T %.1f: initial %.4f, 40 steps %.4f, 400 steps %.4f, optimum %.4f\n",
                double(temperature), before, early, late, best);
  }
}

// The control: where classes say nothing, there is nothing to learn about them.
TEST(FusionLearner, LearnsNothingOfClassesFromShuffledCandidates) {
  for (const float temperature : {0.0f, 0.8f}) {
    const FusionTable learned = learn(temperature, 400, false),
                      shuffled = learn(temperature, 400, true);
    const FusionTable truth = true_table();
    // Correlation of the traffic biases with the true ones.
    const auto correlation = [&](const FusionTable& table) {
      double n = 0, sx = 0, sy = 0, sxx = 0, syy = 0, sxy = 0;
      for (std::size_t i = 5; i < 65; ++i) {
        const double x = table.bias[i], y = truth.bias[i];
        ++n, sx += x, sy += y, sxx += x * x, syy += y * y, sxy += x * y;
      }
      return (n * sxy - sx * sy) / std::sqrt((n * sxx - sx * sx) * (n * syy - sy * sy));
    };
    EXPECT_GT(correlation(learned), 0.85);
    EXPECT_LT(correlation(shuffled), 0.4);
    EXPECT_GT(score(shuffled, temperature), score(learned, temperature) + 0.02);
  }
}

TEST(FusionLearner, EveryObjectiveLearns) {
  const double before = score(FusionTable::initial(), 0.8f), best = score(true_table(), 0.8f);
  for (const Objective& objective : objectives()) {
    const double after = score(learn(0.8f, 200, false, objective), 0.8f);
    // Cross-entropy to the most probable token sharpens; it is not the same optimum.
    EXPECT_LT(after, before - (objective.name == "cross-entropy" ? 0.1 : 0.7) * (before - best))
        << objective.name << ": " << before << " -> " << after << ", best " << best;
  }
}

TEST(FusionLearner, GoesOnFromASavedStateAsIfItHadNotStopped) {
  FusionLearnerOptions options;
  FusionLearner whole(options, FusionTable::initial());
  auto half = std::make_unique<FusionLearner>(options, FusionTable::initial());
  SyntheticTraffic traffic(3);
  for (int i = 0; i < 40; ++i) {
    const auto positions = fusion_positions(traffic.next(0.8f));
    whole.train(positions);
    half->train(positions);
    if (i == 20) {
      StateMap state;
      half->save(state);
      half = std::make_unique<FusionLearner>(options, FusionTable{});
      ASSERT_TRUE(half->restore(state));
    }
  }
  StateMap a, b;
  whole.save(a);
  half->save(b);
  EXPECT_EQ(a.get_one<std::int64_t>("fusion.step", 0), 40);
  EXPECT_EQ(a.serialize(), b.serialize());  // tables, averages, moments, loss
}

}  // namespace
}  // namespace foretoken::trainer
