#include "runtime/speculate/proposal.h"

#include <gtest/gtest.h>

#include <cmath>

#include "foretoken/kernels/sampling.h"
#include "runtime/speculate/candidates.h"

namespace foretoken {
namespace {

CandidateList make(std::initializer_list<Candidate> items) {
  CandidateList list;
  for (const Candidate& item : items) list.push_back(item);
  return list;
}

TEST(ProposeNgram, FollowsTheFixedRule) {
  const auto traffic4 = traffic_class(4, 2, 2), traffic2 = traffic_class(2, 1, 9);
  EXPECT_TRUE(propose_ngram(make({})).empty());
  EXPECT_EQ(propose_ngram(make({{1, own_class(3)}, {2, traffic4}, {3, traffic2}})).token, 2)
      << "the longer match";
  EXPECT_EQ(propose_ngram(make({{1, own_class(4)}, {2, traffic4}})).token, 1)
      << "the own context's at a tie";
  EXPECT_EQ(propose_ngram(make({{1, own_class(9)}, {2, traffic4}})).token, 1);
  EXPECT_EQ(propose_ngram(make({{1, own_class(2)}, {3, traffic2}})).token, 1);
  EXPECT_EQ(propose_ngram(make({{1, own_class(1)}, {3, traffic2}})).token, 3);
  EXPECT_EQ(propose_ngram(make({{1, own_class(1)}})).token, 1) << "what there is";
  EXPECT_EQ(propose_ngram(make({{2, traffic4}, {3, traffic2}})).fusion_class, traffic4);
}

TEST(ProposeFusion, AddsTheBiasesOfATokensCandidates) {
  FusionTable table;
  const auto a = traffic_class(4, 1, 1), b = traffic_class(2, 3, 4), own = own_class(1);
  table.bias[a] = 1.0f;
  table.bias[b] = 0.7f;
  table.bias[own] = 1.5f;
  table.other = 1.0f;
  SamplingParams greedy;
  greedy.temperature = 0;
  const auto list = make({{8, own}, {9, a}, {9, b}});
  const Proposal proposal = propose_fusion(list, table, greedy, 100);
  EXPECT_EQ(proposal.token, 9);
  EXPECT_NEAR(proposal.raw, std::exp(1.7) / (std::exp(1.7) + std::exp(1.5) + std::exp(1.0)), 1e-5);
  // Negative control: a table of zeros cannot tell them apart and takes the lower id.
  EXPECT_EQ(propose_fusion(list, FusionTable{}, greedy, 100).token, 8);
  greedy.logit_bias = {{9, -100.0f}};
  EXPECT_EQ(propose_fusion(list, table, greedy, 100).token, 8) << "a banned token is not drafted";
}

// Four candidates whose scores are the target's logits, and a rest of the vocabulary whose mass the
// table knows: at temperature 1 the draft's q is then exactly the target's p.
struct Coupled : ::testing::Test {
  Coupled() {
    for (int i = 0; i < 4; ++i) {
      const auto fusion_class = static_cast<std::uint8_t>(i);
      table.bias[fusion_class] = kLogits[i];
      list.push_back({kIds[i], fusion_class});
      logits.push_back(kLogits[i]);
      ids.push_back(kIds[i]);
    }
    for (int i = 0; i < 50; ++i) {
      logits.push_back(kRest);
      ids.push_back(1000 + i);
    }
    table.other = kRest + std::log(50.0f);
  }
  TokenId target(std::uint64_t seed, std::int64_t t, float temperature) const {
    return kernels::sample_subset(logits.data(), ids.data(), static_cast<std::int64_t>(ids.size()),
                                  1.0f / temperature, seed, static_cast<std::uint64_t>(t));
  }
  static constexpr float kLogits[4] = {2.0f, 1.5f, 1.0f, 0.0f}, kRest = -2.0f;
  static constexpr TokenId kIds[4] = {17, 5, 40, 900};
  FusionTable table;
  CandidateList list;
  std::vector<float> logits;
  std::vector<std::int32_t> ids;
};

TEST_F(Coupled, SharingTheTargetsNoiseAcceptsFarMoreThanItsArgmaxWould) {
  SamplingParams sampling;
  sampling.temperature = 1.0f;
  sampling.seed = 12345;
  constexpr int kN = 4000;
  int coupled = 0, argmax = 0, shifted = 0, from_rest = 0;
  double raw = 0;
  for (int t = 0; t < kN; ++t) {
    const TokenId wanted = target(sampling.seed, t, 1.0f);
    from_rest += wanted >= 1000 ? 1 : 0;
    const Proposal p = propose_fusion(list, table, sampling, t);
    coupled += p.token == wanted ? 1 : 0;
    raw += static_cast<double>(p.raw);
    argmax += propose_fusion(list, table, sampling, t, /*coupled=*/false).token == wanted ? 1 : 0;
    shifted += propose_fusion(list, table, sampling, t + 1).token == wanted ? 1 : 0;
  }
  // Every target token that is a candidate is proposed: only the rest of the vocabulary is missed.
  EXPECT_EQ(coupled, kN - from_rest);
  EXPECT_GT(coupled, kN * 6 / 10);
  EXPECT_LT(argmax, coupled * 3 / 5);
  EXPECT_LT(shifted, coupled * 3 / 5) << "noise of another position is no use";
  // And its confidence is honest: P(nothing of the rest beats the winner), which is P(accepted)
  // here.
  EXPECT_NEAR(raw / kN, static_cast<double>(coupled) / kN, 0.02);
}

TEST_F(Coupled, WithoutCouplingTheNoiseIsNotUsed) {
  SamplingParams sampling;
  sampling.temperature = 0.7f;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    sampling.seed = seed;
    EXPECT_EQ(propose_fusion(list, table, sampling, 3, /*coupled=*/false).token, kIds[0]);
  }
}

TEST(FusionTable, InitialIsFiniteAndRisesWithEvidence) {
  const FusionTable table = FusionTable::initial();
  EXPECT_TRUE(table.finite());
  EXPECT_GT(table.other, 0);
  for (float bias : table.bias) EXPECT_GT(bias, 0);
  for (int length = 2; length <= 5; ++length)
    EXPECT_GT(table.bias[own_class(length)], table.bias[own_class(length - 1)]);
  EXPECT_GT(table.bias[traffic_class(4, 20, 20)], table.bias[traffic_class(4, 1, 1)]);
  EXPECT_GT(table.bias[traffic_class(4, 20, 20)], table.bias[traffic_class(4, 5, 20)]);
  EXPECT_GT(table.bias[traffic_class(4, 3, 4)], table.bias[traffic_class(2, 3, 4)]);
  FusionTable bad = table;
  bad.bias[7] = std::nanf("");
  EXPECT_FALSE(bad.finite());
}

}  // namespace
}  // namespace foretoken
