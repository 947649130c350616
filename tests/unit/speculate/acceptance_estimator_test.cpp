#include "runtime/speculate/acceptance_estimator.h"

#include <gtest/gtest.h>

#include <random>

namespace foretoken {
namespace {

constexpr Claim kKind{SpeculatorKind::kFusion};

TEST(AcceptanceEstimator, BeforeAnyOutcomeSaysWhatTheSpeculatorSays) {
  AcceptanceEstimator estimator;
  for (float raw : {0.03f, 0.25f, 0.5f, 0.85f}) {
    EXPECT_NEAR(estimator.estimate(kKind, raw, Form(0.4f), false), raw, 0.06f);
  }
}

TEST(AcceptanceEstimator, LearnsAnOverconfidentSpeculatorByFormAndTemperature) {
  // Truth: half the raw confidence in poor form, nine tenths in good form; nothing above
  // temperature 0.
  AcceptanceEstimator estimator;
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform;
  const auto truth = [](float raw, Form form, bool sampled) {
    return sampled ? 0.0f : raw * (form.rate() < 0.55f ? 0.5f : 0.9f);
  };
  for (int i = 0; i < 40000; ++i) {
    const float raw = uniform(random);
    const Form form(uniform(random));
    const bool sampled = i % 2 == 0;
    estimator.update(kKind, raw, form, sampled, uniform(random) < truth(raw, form, sampled));
  }
  for (float raw : {0.25f, 0.55f, 0.85f}) {
    for (float rate : {0.2f, 0.4f, 0.7f, 0.9f}) {
      EXPECT_NEAR(estimator.estimate(kKind, raw, Form(rate), false), truth(raw, Form(rate), false),
                  0.12f)
          << raw << " at form " << rate;
      EXPECT_LT(estimator.estimate(kKind, raw, Form(rate), true), 0.04f);
    }
  }
  // Calibration over everything: the expected number of hits is the number of hits.
  double expected = 0, hits = 0;
  for (int i = 0; i < 20000; ++i) {
    const float raw = uniform(random);
    const Form form(uniform(random));
    expected += static_cast<double>(estimator.estimate(kKind, raw, form, false));
    hits += uniform(random) < truth(raw, form, false) ? 1 : 0;
  }
  EXPECT_NEAR(expected / hits, 1.0, 0.05);
  EXPECT_EQ(estimator.observations(kKind), 40000);
  EXPECT_EQ(estimator.observations({SpeculatorKind::kModel}), 0) << "claims do not share";
}

TEST(AcceptanceEstimator, RisesWithRawConfidenceWhateverTheNoise) {
  AcceptanceEstimator estimator;
  std::mt19937 random(2);
  for (int i = 0; i < 500; ++i) {
    estimator.update(kKind, static_cast<float>(random() % 1000) / 1000, Form(0.4f), false,
                     random() % 2 == 0);
    float last = 0;
    for (float raw = 0; raw <= 1; raw += 0.01f) {
      const float p = estimator.estimate(kKind, raw, Form(0.4f), false);
      ASSERT_GE(p, last);
      ASSERT_LE(p, 1.0f);
      last = p;
    }
  }
}

TEST(AcceptanceEstimator, ForgetsOldTraffic) {
  AcceptanceEstimator estimator;
  for (int i = 0; i < 5000; ++i) estimator.update(kKind, 0.5f, Form(0.4f), false, true);
  EXPECT_GT(estimator.estimate(kKind, 0.5f, Form(0.4f), false), 0.95f);
  for (int i = 0; i < 800; ++i) estimator.update(kKind, 0.5f, Form(0.4f), false, false);
  EXPECT_LT(estimator.estimate(kKind, 0.5f, Form(0.4f), false), 0.1f);
}

TEST(AcceptanceEstimator, BlindEstimateIsTheMeanOverRawConfidences) {
  AcceptanceEstimator estimator;
  for (int i = 0; i < 400; ++i)
    estimator.update(kKind, i % 2 ? 0.1f : 0.9f, Form(0.4f), false, i % 4 == 0);
  EXPECT_NEAR(estimator.estimate_blind(kKind, Form(0.4f), false), 0.25f, 0.05f);
}

TEST(Form, RisesWithHitsFallsWithMisses) {
  Form form(0.3f);
  EXPECT_GT(form.after_hits(3).rate(), 0.6f);
  for (int i = 0; i < 16; ++i) form.update(false);
  EXPECT_LT(form.rate(), 0.01f);
}

}  // namespace
}  // namespace foretoken
