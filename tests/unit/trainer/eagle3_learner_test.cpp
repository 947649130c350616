// Does an EAGLE-3 head learn on from a checkpoint, into a checkpoint of the same names, types and
// vocabulary; and does it go on after a stop as if there had been none? Scored by replay with the
// served arithmetic, on requests it has not seen.
#include <gtest/gtest.h>

#include "runtime/speculate/head/head_bundle.h"
#include "tests/support/eagle3_maker.h"
#include "tests/unit/trainer/learning_fixture.h"

namespace foretoken::trainer {
namespace {

class Eagle3Learning : public LearningFixture {
 protected:
  void SetUp() override {
    ASSERT_NO_FATAL_FAILURE(LearningFixture::SetUp());
    foretoken::testing::RandomEagle3 random = foretoken::testing::tiny_eagle3();
    random.config.n_draft_vocab = 320;
    const HeadTaps taps = head_taps(options_.model->n_layers());
    random.config.layer_ids = {{taps[0] + 1, taps[1] + 1, taps[2] + 1}};  // as the traffic's
    random.type = SafetensorType::kBF16;
    start_ = foretoken::testing::random_eagle3(random);
    options_.eagle3.emplace().start = start_;
    options_.eagle3->learning_rate = 3e-3;
    options_.eagle3->tokens_per_step = 120;
  }
  Eagle3Checkpoint start_;
};

TEST_F(Eagle3Learning, LiftsAcceptanceAndStaysTheSameKindOfCheckpoint) {
  Traces traces;
  HeadTraffic traffic(kHidden, 320, 1);
  const auto learner = learner_factory(options_)(traces);
  Bundle before = learner->snapshot();
  EXPECT_EQ(before.kind, "fusion");
  add_eagle3(before, start_, HeadTerms::none(kHidden));
  const double early = acceptance_length(before);
  learn(*learner, traces, traffic, 160);
  const Bundle after = learner->snapshot();
  ASSERT_EQ(after.kind, "eagle3");
  const double late = acceptance_length(after);
  std::printf("tokens a round of 3 drafted: %.3f from the start, %.3f after 160 requests\n", early,
              late);
  EXPECT_LT(early, 1.2);
  EXPECT_GT(late, 2.0);  // a perfect head: 3.19
  // Exported: the same names, types, shapes and vocabulary.
  auto held = eagle3_of(after);
  ASSERT_TRUE(held) << held.error().message;
  EXPECT_EQ(held->checkpoint.config, start_.config);
  ASSERT_EQ(held->checkpoint.tensors.size(), start_.tensors.size());
  for (const auto& [name, tensor] : start_.tensors) {
    const Eagle3Tensor& learned = held->checkpoint.tensors.at(name);
    EXPECT_EQ(learned.type, tensor.type) << name;
    EXPECT_EQ(learned.shape, tensor.shape) << name;
    EXPECT_EQ(learned.bytes == tensor.bytes, name == "d2t" || name == "t2d") << name;
  }
  ASSERT_TRUE(write_eagle3(held->checkpoint, folder_.file("out")));
  auto read = read_eagle3(folder_.file("out"));
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(*read, held->checkpoint);
}

TEST_F(Eagle3Learning, GoesOnFromASavedStateAsIfItHadNotStopped) {
  Traces traces;
  const auto half = learns_on_over_stops(traces, 10, 4, "eagle3");
  // A recurrent head's state is not an EAGLE-3 head's, and the other way round: each begins anew.
  LearnerOptions recurrent = options_;
  recurrent.eagle3.reset();
  EXPECT_TRUE(learner_factory(recurrent)(traces)->restore(half->state()));
  auto damaged = half->state();
  EXPECT_FALSE(half->restore(std::span(damaged).first(damaged.size() - 1)));
}

TEST_F(Eagle3Learning, WorksMoreWhenTrafficChangesAndLessOnceNothingIsGained) {
  options_.eagle3->passes = 2;
  options_.eagle3->drift_passes = 3;
  options_.eagle3->drift_tokens = 600;
  options_.eagle3->early_tokens = 150;
  Traces traces;
  HeadTraffic traffic(kHidden, 320, 5);
  const auto learner = learner_factory(options_)(traces);
  EXPECT_NEAR(learn(*learner, traces, traffic, 12, "math"), 2, 0.4);
  learner->judged(600, false);
  EXPECT_NEAR(learn(*learner, traces, traffic, 12, "math"), 1, 0.3);
  EXPECT_NEAR(learn(*learner, traces, traffic, 8, "code"), 3, 0.6);
  learn(*learner, traces, traffic, 4, "code");
  EXPECT_NEAR(learn(*learner, traces, traffic, 12, "code"), 2, 0.4) << "for a while only";
}

// Hidden states of other layers would be taken for those that the head reads.
TEST_F(Eagle3Learning, PassesOverOtherLayersAndStrangers) {
  Traces traces;
  HeadTraffic traffic(kHidden, 320, 4);
  const auto learner = learner_factory(options_)(traces);
  for (int i = 0; i < 24; ++i) {
    RequestTrace trace = traffic.request(6, 60);
    if (i % 3 == 0) trace.tap_layers = {0, 0, 0, 3};
    if (i % 3 == 1) trace.tap_width = 64;
    if (i % 3 == 2) trace.tokens[2] = 320;
    traces.all.push_back(trace);
    learner->observe(traces.all.size() - 1, trace);
    while (learner->work(0)) {
    }
  }
  EXPECT_EQ(learner->snapshot().kind, "fusion");
}

}  // namespace
}  // namespace foretoken::trainer
