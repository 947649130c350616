// The gate lets through what is better and little else.
#include "trainer/gate/prequential_gate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/trainer/synthetic_traffic.h"

namespace foretoken::trainer {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

PrequentialGate::Decision decide(PrequentialGate& gate, SyntheticTraffic& traffic,
                                 int* requests = nullptr) {
  for (int i = 1; i <= 1000; ++i) {
    const RequestTrace trace = traffic.next(i % 2 ? 0.0f : 0.8f);
    if (auto decision = gate.score(trace, fusion_positions(trace))) {
      if (requests) *requests = i;
      return *decision;
    }
  }
  ADD_FAILURE() << "no decision";
  return {};
}

TEST(PrequentialGate, PromotesWhatIsBetterAndServesIt) {
  PrequentialGate gate(16, FusionTable::initial());
  EXPECT_FALSE(gate.has_candidate());
  gate.propose({true_table(), 10, 2000, 20, 0.5});
  SyntheticTraffic traffic(1);
  int requests = 0;
  const auto decision = decide(gate, traffic, &requests);
  EXPECT_TRUE(decision.promoted) << decision.verdict;
  EXPECT_EQ(requests, 16);
  EXPECT_THAT(decision.verdict, StartsWith("promoted: log overlap +"));
  EXPECT_THAT(decision.verdict, HasSubstr("16 requests"));
  EXPECT_EQ(gate.state().served.bias, true_table().bias);
  EXPECT_FALSE(gate.has_candidate());
}

TEST(PrequentialGate, RefusesWhatIsWorseAndWhatIsTheSame) {
  PrequentialGate gate(16, true_table());
  SyntheticTraffic traffic(2);
  gate.propose({FusionTable::initial(), 1, 1, 1, 1});
  int requests = 0;
  EXPECT_FALSE(decide(gate, traffic, &requests).promoted);
  EXPECT_EQ(requests, 16 * PrequentialGate::kLooks);
  gate.propose({true_table(), 1, 1, 1, 1});
  const auto same = decide(gate, traffic);
  EXPECT_FALSE(same.promoted);
  EXPECT_THAT(same.verdict, StartsWith("refused"));
  EXPECT_EQ(gate.state().served.bias, true_table().bias);
}

// Candidates that are the true table moved at random in a direction that neither gains nor loses on
// average are worse by construction (the truth is the optimum), so each promotion is an error. The
// bound allows for 5 % of 100 and chance (P(more than 12 | 5 %) < 0.002).
TEST(PrequentialGate, RarelyPromotesByChance) {
  int promoted = 0;
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal(0, 0.05f);
    FusionTable candidate = true_table();
    for (float& bias : candidate.bias) bias += normal(random);
    PrequentialGate gate(8, true_table());
    gate.propose({candidate, 1, 1, 1, 1});
    SyntheticTraffic traffic(1000 + seed);
    promoted += decide(gate, traffic).promoted;
  }
  EXPECT_LE(promoted, 12);
}

TEST(PrequentialGate, GoesOnFromASavedState) {
  PrequentialGate first(16, FusionTable::initial()), second(16, FusionTable::initial());
  first.propose({true_table(), 1, 1, 1, 1});
  SyntheticTraffic a(7), b(7);
  for (int i = 0; i < 10; ++i) {
    const RequestTrace trace = a.next(0.0f);
    ASSERT_FALSE(first.score(trace, fusion_positions(trace)));
    b.next(0.0f);
  }
  second.restore(first.state());
  EXPECT_EQ(decide(first, a).verdict, decide(second, b).verdict);
}

}  // namespace
}  // namespace foretoken::trainer
