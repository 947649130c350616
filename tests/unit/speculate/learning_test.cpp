// The cheap speculators over simulated traffic: they learn from it, lose what they learned when the
// store is taken away, and never draft a token that was not asked for.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/speculate/learned.h"
#include "simulated_traffic.h"

namespace foretoken {
namespace {

using simulated::Loop;
using simulated::Source;
using simulated::Totals;
using ::testing::Each;

void propose_both(DraftSources& sources, DraftJob& job) {
  simulated::propose(sources, simulated::kBoth, std::span(&job, 1));
}

struct Kinds {
  const char* name;
  SpecType kinds;
};
class Learning : public ::testing::TestWithParam<Kinds> {
 protected:
  Loop::Options options() const {
    Loop::Options o;
    o.kinds = GetParam().kinds;
    o.fixed_length = 4;
    return o;
  }
};

TEST_P(Learning, AcceptanceGrowsWithTraffic) {
  for (float temperature : {0.0f, 0.8f}) {
    Loop loop(options());
    const Source source;
    const Totals first = loop.serve(source, 5, 60, 200, temperature);
    loop.serve(source, 60, 60, 200, temperature);
    const Totals last = loop.serve(source, 10, 60, 200, temperature);
    EXPECT_GT(last.acceptance_length(), first.acceptance_length() + 0.25)
        << "at temperature " << temperature;
    EXPECT_GT(last.acceptance_length(), temperature > 0 ? 1.4 : 1.7);
  }
}

TEST_P(Learning, WithoutTheStoreThereIsNothingToLearnFrom) {
  // Negative control: the same traffic with trace off, so that nothing enters the store.
  Loop with(options()), without(options());
  const Source source;
  with.serve(source, 60, 60, 200, 0.0f, true);
  without.serve(source, 60, 60, 200, 0.0f, false);
  EXPECT_GT(with.sources().stores().entries(), 0);
  EXPECT_EQ(without.sources().stores().entries(), 0);
  const Totals a = with.serve(source, 10, 60, 200, 0.0f),
               b = without.serve(source, 10, 60, 200, 0.0f, false);
  EXPECT_GT(a.acceptance_length(), b.acceptance_length() + 0.3);
  // And a store that is emptied loses what it gave.
  ASSERT_TRUE(with.sources().stores().forget(""));
  const Totals emptied = with.serve(source, 2, 60, 200, 0.0f, false);
  EXPECT_LT(emptied.acceptance_length(), a.acceptance_length() - 0.3);
}

INSTANTIATE_TEST_SUITE_P(Kinds, Learning,
                         ::testing::Values(Kinds{"ngram", simulated::kNgram},
                                           Kinds{"fusion", simulated::kFusion},
                                           Kinds{"both", simulated::kBoth}),
                         [](const auto& info) { return info.param.name; });

TEST(Learning, CouplingIsWhatKeepsFusionAheadAtTemperature) {
  Loop::Options o;
  o.fixed_length = 3;
  Source source;
  source.novelty = 0.1;
  source.logits = {1.0f, 0.7f, 0.4f, 0.0f};  // nearly even: the argmax is right a third of the time
  o.kinds = simulated::kNgram;
  Loop ngram(o);
  o.kinds = simulated::kFusion;
  Loop fusion(o);
  for (Loop* loop : {&ngram, &fusion}) loop->serve(source, 100, 60, 200, 1.0f);
  EXPECT_GT(fusion.serve(source, 20, 60, 200, 1.0f).acceptance_length(),
            ngram.serve(source, 20, 60, 200, 1.0f).acceptance_length() + 0.1);
}

TEST(Learning, ConfidencesAreCalibratedAlongTheWholeDraft) {
  // Sum of survivals of drafted tokens against what was accepted, at both temperatures.
  for (float temperature : {0.0f, 0.8f}) {
    DraftSources sources(
        {.max_sequences = 1, .max_draft = 6, .max_tokens = 4096, .store_bytes = 4 << 20});
    const Source source;
    double expected = 0, accepted = 0, expected_at[6] = {}, accepted_at[6] = {};
    for (std::uint64_t request = 1; request <= 120; ++request) {
      SamplingParams sampling;
      sampling.temperature = temperature;
      sampling.seed = simulated::mix(request, 3);
      auto tokens = source.text(request, 40, sampling);
      DraftJob job;
      job.context = {.slot = 0,
                     .tokens = tokens,
                     .sampling = &sampling,
                     .store = sources.stores().acquire("")};
      sources.open(job.context);
      while (tokens.size() < 200) {
        job.context.tokens = tokens;
        job.max_tokens = 6;
        propose_both(sources, job);
        std::vector<TokenId> emitted, all = tokens;
        float survival = 1;
        bool alive = true;
        for (std::size_t i = 0; i < job.draft.tokens.size() || alive; ++i) {
          TokenId token = -1;
          if (alive) {
            token = source.next(request, all, sampling);
            emitted.push_back(token);
            all.push_back(token);
          }
          if (i >= job.draft.tokens.size()) break;
          survival *= job.draft.confidences[i];
          alive = alive && job.draft.tokens[i] == token;
          if (request > 60) {
            expected += static_cast<double>(survival);
            accepted += alive ? 1 : 0;
            expected_at[i] += static_cast<double>(survival);
            accepted_at[i] += alive ? 1 : 0;
          }
        }
        sources.commit(job.context, emitted);
        tokens = all;
      }
      sources.close(0, true);
      sources.stores().release(job.context.store);
    }
    EXPECT_NEAR(expected / accepted, 1.0, 0.1) << temperature;
    for (int depth = 0; depth < 4; ++depth) {
      EXPECT_NEAR(expected_at[depth] / accepted_at[depth], 1.0, 0.25)
          << "depth " << depth << " at " << temperature;
    }
  }
}

TEST(DraftSources, LogsTheCandidatesAsFirstLookedUpWithTheRightPrefix) {
  DraftSources sources(
      {.max_sequences = 2, .max_draft = 4, .max_tokens = 256, .store_bytes = 1 << 18});
  SamplingParams greedy;
  greedy.temperature = 0;
  std::vector<TokenId> tokens = {1, 2, 3, 4, 5, 6, 1, 2, 3};
  DraftJob job;
  job.context = {
      .slot = 1, .tokens = tokens, .sampling = &greedy, .store = sources.stores().acquire("")};
  sources.open(job.context);
  job.max_tokens = 3;
  propose_both(sources, job);
  ASSERT_EQ(job.draft.tokens, (std::vector<TokenId>{4, 5, 6}));
  // 4 and 5 accepted, then 9 instead of 6.
  const std::vector<TokenId> emitted = {4, 5, 9};
  sources.commit(job.context, emitted);
  tokens.insert(tokens.end(), emitted.begin(), emitted.end());
  job.context.tokens = tokens;
  // Nothing drafted: looked up at commit.
  sources.commit(job.context, std::vector<TokenId>{7});
  const auto logged = sources.logged(1);
  ASSERT_EQ(logged.size(), 4u);
  EXPECT_EQ(logged[0][0].token, 4);
  EXPECT_EQ(logged[1][0].token, 5);
  EXPECT_EQ(logged[2][0].token, 6) << "the rejected position's candidates had the right prefix";
  EXPECT_EQ(logged[3].size(), 0u) << "9 was never seen before";
}

TEST(DraftSources, AbortedAndUntracedRequestsStayOutOfTheStore) {
  DraftSources sources(
      {.max_sequences = 1, .max_draft = 4, .max_tokens = 64, .store_bytes = 1 << 16});
  SamplingParams sampling;
  const std::vector<TokenId> tokens = {1, 2, 3, 4, 5};
  DraftContext context{
      .slot = 0, .tokens = tokens, .sampling = &sampling, .store = sources.stores().acquire("")};
  sources.open(context);
  sources.close(0, false);
  EXPECT_EQ(sources.stores().entries(), 0);
  sources.open(context);
  sources.close(0, true);
  EXPECT_GT(sources.stores().entries(), 0);
  sources.close(0, true);  // closing twice adds nothing
  EXPECT_EQ(sources.stores().at(context.store).requests(), 1);
}

TEST(DraftSources, ADraftEndsAtAStopTokenAndAtItsLimits) {
  DraftSources sources(
      {.max_sequences = 1, .max_draft = 8, .max_tokens = 64, .store_bytes = 1 << 16});
  SamplingParams greedy;
  greedy.temperature = 0;
  const std::vector<TokenId> tokens = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3};
  const std::vector<TokenId> stops = {6};
  DraftJob job;
  job.context = {
      .slot = 0, .tokens = tokens, .sampling = &greedy, .store = sources.stores().acquire("")};
  sources.open(job.context);
  job.max_tokens = 2;
  propose_both(sources, job);
  EXPECT_EQ(job.draft.tokens, (std::vector<TokenId>{4, 5}));
  job.max_tokens = 8;
  job.context.stop_tokens = stops;
  propose_both(sources, job);
  EXPECT_EQ(job.draft.tokens, (std::vector<TokenId>{4, 5, 6}));
  job.max_tokens = 0;
  propose_both(sources, job);
  EXPECT_TRUE(job.draft.tokens.empty());
}

TEST(DraftSources, TheTableThatShipsIsSilentBesideTheFixedRule) {
  DraftSources sources(
      {.max_sequences = 1, .max_draft = 8, .max_tokens = 64, .store_bytes = 1 << 16});
  SamplingParams greedy;
  greedy.temperature = 0;
  // The rule goes on with the own context's 4; a table may trust the traffic's 8 more.
  const std::vector<TokenId> tokens = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3};
  const auto ships = initial_weights();
  LearnedWeights learned = *ships;
  learned.initial = false;
  learned.fusion.bias.fill(5);
  for (int length = 1; length <= kOwnClasses; ++length) learned.fusion.bias[own_class(length)] = -5;
  DraftJob job;
  job.context = {
      .slot = 0, .tokens = tokens, .sampling = &greedy, .store = sources.stores().acquire("")};
  sources.stores().at(job.context.store).add(std::vector<TokenId>{1, 2, 3, 8, 8, 8});
  sources.open(job.context);
  job.max_tokens = 4;
  const std::vector<TokenId> wanted = {4, 5, 6, 7};
  job.context.learned = ships.get();
  propose_both(sources, job);
  EXPECT_EQ(job.draft.tokens, wanted);
  EXPECT_THAT(job.draft.kinds, Each(SpeculatorKind::kNgram));
  simulated::propose(sources, simulated::kFusion, std::span(&job, 1));
  EXPECT_EQ(job.draft.tokens, wanted) << "asked for by itself it drafts";
  job.context.learned = &learned;
  propose_both(sources, job);
  ASSERT_FALSE(job.draft.tokens.empty());
  EXPECT_EQ(job.draft.tokens[0], 8);
  EXPECT_EQ(job.draft.kinds[0], SpeculatorKind::kFusion);
}

TEST(DraftSources, DeterministicGivenTheSameRequests) {
  const auto run = [] {
    Loop::Options o;
    o.noise = 0;
    Loop loop(o);
    const Source source;
    const Totals t = loop.serve(source, 20, 60, 150, 0.8f);
    return std::make_pair(loop.sources().stores().at(0).save(),
                          std::make_pair(t.drafted, t.accepted));
  };
  EXPECT_EQ(run(), run());
}

}  // namespace
}  // namespace foretoken
