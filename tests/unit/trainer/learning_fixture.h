// What the tests of the heads' learners share: a tiny model, the options of a learner for it, and
// how well what was learned drafts for traffic that it has not seen.
#pragma once

#include <gtest/gtest.h>

#include "runtime/evaluate/portfolio_replay.h"
#include "tests/support/gguf_writer.h"
#include "tests/unit/trainer/head_traffic.h"
#include "trainer/head/speculator_learner.h"

namespace foretoken::trainer {

class LearningFixture : public ::testing::Test {
 protected:
  static constexpr std::int64_t kHidden = 128;

  void SetUp() override {
    foretoken::testing::TinyModelOptions model;
    model.hidden = int(kHidden);
    foretoken::testing::write_tiny_model(folder_.file("tiny.gguf"), model);
    auto rows = VocabularyRows::open(folder_.file("tiny.gguf"));
    ASSERT_TRUE(rows) << rows.error().message;
    options_.model = *rows;
  }

  // Mean tokens a round of three drafted ones, the head alone.
  double acceptance_length(const Bundle& bundle) const {
    auto weights = learned_from_bundle(bundle, options_.model);
    EXPECT_TRUE(weights) << weights.error().message;
    PortfolioReplay replay(kinds_named("head"), weights->get());
    HeadTraffic traffic(kHidden, 320, 1000);
    double rounds = 0, emitted = 0;
    for (int i = 0; i < 10; ++i) {
      const PortfolioWalk walk = replay.walk_fixed(traffic.request(6, 60), 3);
      rounds += double(walk.accepted.size());
      for (const std::int32_t accepted : walk.accepted) emitted += accepted + 1;
    }
    return emitted / rounds;
  }

  foretoken::testing::TemporaryDirectory folder_;
  LearnerOptions options_;
};

}  // namespace foretoken::trainer
