// Scores of a fusion table from a log alone, against distributions computed in full.
#include "runtime/evaluate/fusion_replay.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "runtime/evaluate/portfolio_replay.h"
#include "runtime/speculate/fusion_bundle.h"
#include "runtime/speculate/proposal.h"

namespace foretoken {
namespace {

constexpr int kVocabulary = 500;

// A whole row of logits, and the filtered distribution at a temperature by the definition:
// temperature, then top-k, top-p, min-p.
struct Row {
  std::vector<float> logits;
  std::vector<TokenId> order;  // by logit, descending

  explicit Row(std::mt19937_64& random) : logits(kVocabulary), order(kVocabulary) {
    std::normal_distribution<float> normal(0, 3);
    for (float& logit : logits) logit = normal(random);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](TokenId a, TokenId b) {
      return logits[std::size_t(a)] > logits[std::size_t(b)];
    });
  }
  float logit(TokenId token) const { return logits[std::size_t(token)]; }

  std::vector<double> distribution(const TraceSampling& sampling) const {
    std::vector<double> p(kVocabulary, 0.0);
    std::vector<double> sorted;
    for (const TokenId token : order) {
      sorted.push_back(std::exp((logit(token) - logit(order[0])) / sampling.temperature));
    }
    std::size_t keep = sampling.top_k > 0 ? std::size_t(sampling.top_k) : sorted.size();
    const double total =
        std::accumulate(sorted.begin(), sorted.begin() + std::ptrdiff_t(keep), 0.0);
    double cumulative = 0;
    for (std::size_t i = 0; i < keep; ++i) {
      if (cumulative >= sampling.top_p * total) keep = i;
      cumulative += sorted[i];
    }
    while (keep > 1 && sorted[keep - 1] < sampling.min_p) --keep;
    const double kept = std::accumulate(sorted.begin(), sorted.begin() + std::ptrdiff_t(keep), 0.0);
    for (std::size_t i = 0; i < keep; ++i) p[std::size_t(order[i])] = sorted[i] / kept;
    return p;
  }

  GeneratedTokenTrace logged(TokenId emitted, const TraceSampling& sampling) const {
    GeneratedTokenTrace generated;
    for (int k = 0; k < kTeacherTopK; ++k) {
      generated.top_ids.push_back(order[std::size_t(k)]);
      generated.top_logits.push_back(logit(order[std::size_t(k)]));
    }
    double sum = 0;
    for (const float l : logits) sum += std::exp(double(l));
    generated.log_sum_exp = static_cast<float>(std::log(sum));
    generated.logprob = static_cast<float>(std::log(distribution(sampling)[std::size_t(emitted)]));
    return generated;
  }
};

TEST(TargetProbabilities, FollowFromTheLogWhateverTheFilters) {
  std::mt19937_64 random(5);
  const std::vector<TraceSampling> cases = {{0.8f, 0, 1, 0, 0},    {1.0f, 0, 1, 0, 0},
                                            {0.5f, 8, 1, 0, 0},    {0.8f, 0, 0.7f, 0, 0},
                                            {1.0f, 0, 1, 0.1f, 0}, {0.7f, 30, 0.9f, 0.05f, 0}};
  for (const TraceSampling& sampling : cases) {
    for (int trial = 0; trial < 50; ++trial) {
      const Row row(random);
      const auto p = row.distribution(sampling);
      std::discrete_distribution<int> draw(p.begin(), p.end());
      const TokenId emitted = draw(random);
      std::vector<TokenId> tokens = {row.order[0], row.order[2], row.order[9], row.order[40],
                                     row.order[300]};
      if (std::find(tokens.begin(), tokens.end(), emitted) == tokens.end())
        tokens.push_back(emitted);
      const auto found = target_probabilities(row.logged(emitted, sampling), emitted,
                                              sampling.temperature, tokens);
      const bool in_top = std::find(row.order.begin(), row.order.begin() + kTeacherTopK, emitted) !=
                          row.order.begin() + kTeacherTopK;
      // Outside the top 64 the normaliser is a bound; what is outside is not in the log, but tiny.
      const double tolerance = in_top ? 2e-3 : 0.05;
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        EXPECT_NEAR(found[i], p[std::size_t(tokens[i])], tolerance)
            << "T " << sampling.temperature << " top-k " << sampling.top_k << " top-p "
            << sampling.top_p;
      }
    }
  }
}

TEST(TargetProbabilities, AtTemperatureZeroTheEmittedTokenHasItAll) {
  std::mt19937_64 random(6);
  const Row row(random);
  GeneratedTokenTrace generated = row.logged(row.order[0], {1.0f});
  const auto p = target_probabilities(generated, row.order[0], 0, {row.order[1], row.order[0]});
  EXPECT_EQ(p, (std::vector<float>{0, 1}));
}

RequestTrace trace_of(const std::vector<std::vector<Candidate>>& candidates,
                      const std::vector<TokenId>& output) {
  RequestTrace trace;
  trace.tokens = {1, 2};
  trace.n_prompt = 2;
  trace.tokens.insert(trace.tokens.end(), output.begin(), output.end());
  for (const auto& list : candidates) trace.generated.push_back({list, {}, {}, 0, 0});
  return trace;
}

TEST(FusionPositions, MergeCandidatesOfOneToken) {
  const RequestTrace trace = trace_of({{}, {{7, 0}, {8, 5}, {7, 64}}, {{9, 1}}}, {5, 7, 6});
  const auto positions = fusion_positions(trace);
  ASSERT_EQ(positions.size(), 2u);  // a position without candidates says nothing
  EXPECT_EQ(positions[0].n_candidates, 3);
  EXPECT_EQ(positions[0].n_tokens, 2);
  EXPECT_EQ(positions[0].p[0], 1);
  EXPECT_EQ(positions[0].p_other, 0);
  EXPECT_EQ(positions[1].p_other, 1);

  FusionTable table;
  table.bias[0] = 1;
  table.bias[64] = 0.5f;
  table.bias[5] = 1;
  table.other = 0;
  const double q = std::exp(1.5) / (std::exp(1.5) + std::exp(1.0) + 1);
  EXPECT_NEAR(overlap(positions[0], table), q, 1e-6);
}

AcceptanceStats walk_fusion(const RequestTrace& trace, const FusionTable& table, int n_draft) {
  LearnedWeights weights;
  weights.fusion = table;
  return PortfolioReplay(kinds_named("fusion"), &weights).walk_fixed(trace, n_draft).stats;
}

TEST(FusionReplay, WalksRoundsAsLive) {
  // Output tokens 10..19; the candidate is right at every position but 4 (of the output).
  std::vector<std::vector<Candidate>> candidates(10);
  std::vector<TokenId> output;
  for (int i = 0; i < 10; ++i) {
    output.push_back(10 + i);
    candidates[std::size_t(i)] = {{i == 4 ? 99 : 10 + i, 3}};
  }
  const RequestTrace trace = trace_of(candidates, output);
  const FusionTable table = FusionTable::initial();
  // Draft 2: rounds from 1 (2, 3 accepted... positions 1, 2), 4 (wrong), 5 (5, 6), 8 (8; 9 is the
  // bonus).
  const auto two = walk_fusion(trace, table, 2);
  EXPECT_EQ(two.rounds, 4);
  EXPECT_EQ(two.accepted, 2 + 0 + 2 + 1);
  // Draft 8: 1..3 accepted and 4 rejected, emitted as the round's own; then 5..8 and 9 is the
  // bonus.
  const auto eight = walk_fusion(trace, table, 8);
  EXPECT_EQ(eight.rounds, 2);
  EXPECT_EQ(eight.accepted, 3 + 4);
  EXPECT_EQ(eight.emitted, 9);
  EXPECT_EQ(walk_fusion(trace, table, 0).drafting_rounds, 0);
}

// Above temperature 0 acceptance follows from the seed: the proposal is the coupled one.
TEST(FusionReplay, UsesTheRequestsNoise) {
  std::mt19937_64 random(2);
  FusionTable table;
  table.bias[0] = 1.0f;
  table.bias[1] = 1.0f;
  std::vector<std::vector<Candidate>> candidates(200, {{7, 0}, {8, 1}});
  std::vector<TokenId> output(200);
  for (TokenId& token : output) token = random() % 2 ? 7 : 8;
  RequestTrace trace = trace_of(candidates, output);
  trace.sampling.temperature = 0.8f;
  trace.sampling.seed = 123;
  SamplingParams sampling;
  sampling.temperature = 0.8f;
  sampling.seed = 123;
  CandidateList list;
  list.push_back({7, 0});
  list.push_back({8, 1});
  int right = 0;
  for (int i = 1; i + 1 < 200; ++i) {
    right += propose_fusion(list, table, sampling, 2 + i).token == output[std::size_t(i)];
  }
  // With one drafted token a round, positions follow from the walk; count them independently.
  std::int64_t rounds = 0, accepted = 0;
  for (int i = 1; i + 1 < 200; ++rounds) {
    const bool hit = propose_fusion(list, table, sampling, 2 + i).token == output[std::size_t(i)];
    accepted += hit;
    i += 1 + hit;
  }
  const auto counts = walk_fusion(trace, table, 1);
  EXPECT_EQ(counts.drafting_rounds, rounds);
  EXPECT_EQ(counts.accepted, accepted);
  EXPECT_GT(right, 50);
  trace.sampling.seed = 124;
  EXPECT_NE(walk_fusion(trace, table, 1).accepted, counts.accepted);
}

TEST(FusionBundle, ReadsWhatItWritesAndRefusesOtherShapes) {
  const FusionTable table = FusionTable::initial();
  Bundle bundle = bundle_of(table);
  const auto back = fusion_table_of(bundle);
  ASSERT_TRUE(back);
  EXPECT_EQ(back->bias, table.bias);
  EXPECT_EQ(back->other, table.other);
  bundle.tensors["fusion.bias"].shape = {64};
  EXPECT_EQ(fusion_table_of(bundle).error().message.rfind("shape: ", 0), 0u);
  bundle.tensors.erase("fusion.bias");
  EXPECT_EQ(fusion_table_of(bundle).error().message, "shape: bundle: fusion.bias is missing");
  bundle.kind = "another";
  EXPECT_EQ(fusion_table_of(bundle).error().message.rfind("kind: ", 0), 0u);
}

}  // namespace
}  // namespace foretoken
