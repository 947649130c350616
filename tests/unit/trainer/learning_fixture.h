// What the tests of the heads' learners share: a tiny model, the options of a learner for it, and
// how well what was learned drafts for traffic that it has not seen.
#pragma once

#include "runtime/evaluate/portfolio_replay.h"
#include "tests/unit/trainer/head_traffic.h"
#include "tests/unit/trainer/tiny_vocabulary.h"
#include "trainer/head/speculator_learner.h"

namespace foretoken::trainer {

class LearningFixture : public TinyVocabulary {
 protected:
  void SetUp() override {
    ASSERT_NO_FATAL_FAILURE(TinyVocabulary::SetUp());
    options_.model = rows_;
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

  // Two learners of the same traffic: one learns without a stop; the other is thrown away and
  // restored from its saved state between any two slices, in the middle of a step, too, from the
  // request `from` on. What they hold must be equal.
  std::unique_ptr<Learner> learns_on_over_stops(Traces& traces, int requests, int from,
                                                const std::string& kind) const {
    HeadTraffic traffic(kHidden, 320, 2);
    const auto whole = learner_factory(options_)(traces);
    auto half = learner_factory(options_)(traces);
    for (int i = 0; i < requests; ++i) {
      traces.all.push_back(traffic.request(6, 60));
      whole->observe(traces.all.size() - 1, traces.all.back());
      half->observe(traces.all.size() - 1, traces.all.back());
      while (whole->work(0)) {
      }
      for (int slice = 0; half->work(0); ++slice) {
        if (i < from || slice != i % 3) continue;
        const auto state = half->state();
        half = learner_factory(options_)(traces);
        EXPECT_TRUE(half->restore(state));
      }
    }
    const Bundle a = whole->snapshot(), b = half->snapshot();
    EXPECT_EQ(a.kind, kind);
    EXPECT_EQ(a.tensors, b.tensors);
    EXPECT_EQ(whole->facts().step, half->facts().step);
    EXPECT_EQ(whole->facts().loss, half->facts().loss);
    return half;
  }

  LearnerOptions options_;
};

}  // namespace foretoken::trainer
