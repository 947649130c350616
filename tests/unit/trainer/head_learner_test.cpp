// Does the head learn, and does it go on after a stop as if there had been none? Scored by replay
// with the served arithmetic, on requests it has not seen.
#include <gtest/gtest.h>

#include "tests/unit/trainer/learning_fixture.h"

namespace foretoken::trainer {
namespace {

class HeadLearning : public LearningFixture {
 protected:
  void SetUp() override {
    ASSERT_NO_FATAL_FAILURE(LearningFixture::SetUp());
    options_.head.inner = 64;
    options_.head.vocabulary = 320;
    options_.head.learning_rate = 3e-3;  // a tenth of a real head's width, a tenth of its traffic
    options_.head.tokens_per_step = 120;
  }
};

TEST_F(HeadLearning, LiftsAcceptanceOnRequestsItHasNotSeen) {
  Traces traces;
  HeadTraffic traffic(kHidden, 320, 1);
  const auto learner = learner_factory(options_)(traces);
  EXPECT_EQ(learner->snapshot().kind, "fusion");
  learn(*learner, traces, traffic, 12);
  ASSERT_EQ(learner->snapshot().kind, "head");
  const double early = acceptance_length(learner->snapshot());
  learn(*learner, traces, traffic, 90);
  const double late = acceptance_length(learner->snapshot());
  std::printf("tokens a round of 3 drafted: %.3f after 12 requests, %.3f after 102\n", early, late);
  // A perfect head: 1 + .85 + .85^2 + .85^3 = 3.19.
  EXPECT_LT(early, 1.6);
  EXPECT_GT(late, 2.2);
}

// The control: tokens that nothing predicts teach nothing.
TEST_F(HeadLearning, LearnsNothingFromNoise) {
  Traces traces;
  HeadTraffic noise(kHidden, 320, 1, 0.0);
  const auto learner = learner_factory(options_)(traces);
  learn(*learner, traces, noise, 40);
  EXPECT_LT(acceptance_length(learner->snapshot()), 1.15);
}

TEST_F(HeadLearning, WorksMoreWhenTrafficChangesAndLessOnceNothingIsGained) {
  options_.head.early_tokens = 250;
  options_.head.drift_tokens = 2000;
  options_.head.drift_passes = 6;
  options_.head.teacher_temperature = 1;  // what it predicts comes true, however fast it learns
  Traces traces;
  HeadTraffic traffic(kHidden, 320, 5);
  const auto learner = learner_factory(options_)(traces);
  const auto more = [&](int requests, const char* domain) {
    return learn(*learner, traces, traffic, requests, domain);
  };
  more(20, "math");
  EXPECT_NEAR(more(20, "math"), 4, 0.5);
  learner->judged(999, false);  // of the early days
  EXPECT_NEAR(more(20, "math"), 4, 0.5);
  learner->judged(2000, false);
  EXPECT_NEAR(more(20, "math"), 1, 0.3);
  EXPECT_NEAR(more(20, "code"), 6, 0.7);
  more(20, "code");
  EXPECT_NEAR(more(20, "code"), 4, 0.5) << "for a while only";
}

TEST_F(HeadLearning, GoesOnFromASavedStateAsIfItHadNotStopped) {
  Traces traces;
  learns_on_over_stops(traces, 24, 10, "head");
}

TEST_F(HeadLearning, RefusesAStateThatIsNotOne) {
  Traces traces;
  HeadTraffic traffic(kHidden, 320, 3);
  const auto learner = learner_factory(options_)(traces);
  learn(*learner, traces, traffic, 12);
  auto state = learner->state();
  EXPECT_FALSE(learner->restore(std::span(state).first(state.size() - 1)));
  LearnerOptions wider = options_;
  wider.head.inner = 96;
  EXPECT_FALSE(learner_factory(wider)(traces)->restore(state));
  EXPECT_TRUE(learner->restore(state));
}

// Traces are a stranger's: ids outside the model, hidden states of another width.
TEST_F(HeadLearning, PassesOverWhatItCannotLearnFrom) {
  Traces traces;
  HeadTraffic traffic(kHidden, 320, 4);
  const auto learner = learner_factory(options_)(traces);
  for (int i = 0; i < 30; ++i) {
    RequestTrace trace = traffic.request(6, 60, 0, true);
    if (i % 3 == 0) trace.generated[5].candidates[0].token = 320;
    if (i % 3 == 1) trace.tap_width = 64;
    if (i % 3 == 2) trace.generated[7].top_ids[1] = -5;
    traces.all.push_back(trace);
    learner->observe(traces.all.size() - 1, trace);
    while (learner->work(0)) {
    }
  }
  EXPECT_EQ(learner->snapshot().kind, "fusion");
}

}  // namespace
}  // namespace foretoken::trainer
