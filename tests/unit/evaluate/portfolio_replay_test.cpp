// Replay of the learned table on simulated traffic: the rounds that were run, exactly.
#include "runtime/evaluate/portfolio_replay.h"

#include <gtest/gtest.h>

#include "tests/unit/speculate/simulated_traffic.h"

namespace foretoken {
namespace {

// Serves requests at a fixed draft length and writes the trace the engine would.
std::vector<RequestTrace> serve(const FusionTable& table, int draft_length, float temperature,
                                int requests) {
  DraftSources sources(
      {.max_sequences = 1, .max_draft = 8, .max_tokens = 1024, .store_bytes = 4 << 20});
  LearnedWeights weights;
  weights.fusion = table;
  const simulated::Source source;
  std::vector<RequestTrace> traces;
  for (int i = 0; i < requests; ++i) {
    const auto request = static_cast<std::uint64_t>(i + 1);
    SamplingParams sampling;
    sampling.temperature = temperature;
    sampling.seed = simulated::mix(request, 5);
    RequestTrace trace;
    trace.tokens = source.text(request, 50, sampling);
    trace.n_prompt = 50;
    trace.sampling = {.temperature = temperature, .seed = sampling.seed};
    DraftJob job;
    job.context = {.slot = 0,
                   .tokens = trace.tokens,
                   .sampling = &sampling,
                   .store = sources.stores().acquire(""),
                   .learned = &weights};
    sources.open(job.context);
    bool first = true;
    while (trace.tokens.size() < 200) {
      job.context.tokens = trace.tokens;
      job.max_tokens =
          first ? 0 : std::min<int>(draft_length, 199 - static_cast<int>(trace.tokens.size()));
      simulated::propose(sources, simulated::kFusion, std::span(&job, 1));
      std::vector<TokenId> all = trace.tokens, emitted;
      int accepted = 0;
      while (true) {
        const TokenId token = source.next(request, all, sampling);
        all.push_back(token);
        emitted.push_back(token);
        if (accepted == static_cast<int>(job.draft.tokens.size()) ||
            job.draft.tokens[static_cast<std::size_t>(accepted)] != token) {
          break;
        }
        ++accepted;
      }
      sources.commit(job.context, emitted);
      if (!first) {
        RoundTrace round;
        round.start = static_cast<std::int32_t>(trace.tokens.size());
        round.drafted = job.draft.tokens;
        round.kinds = job.draft.kinds;
        round.accepted = accepted;
        trace.rounds.push_back(round);
      }
      first = false;
      trace.tokens = all;
    }
    for (const CandidateList& list : sources.logged(0)) {
      GeneratedTokenTrace token;
      token.candidates = list;
      trace.generated.push_back(token);
    }
    sources.close(0, true);
    sources.stores().release(job.context.store);
    traces.push_back(std::move(trace));
  }
  return traces;
}

LearnedWeights weights_with(const FusionTable& table) {
  LearnedWeights weights;
  weights.fusion = table;
  return weights;
}
constexpr SpecType kFusion = kinds_named("fusion");

TEST(ReplayScore, ReproducesTheLiveRoundsExactly) {
  const FusionTable table = FusionTable::initial();
  for (float temperature : {0.0f, 0.8f}) {
    std::int64_t accepted = 0;
    const LearnedWeights weights = weights_with(table);
    for (const RequestTrace& trace : serve(table, 4, temperature, 60)) {
      ASSERT_EQ(trace.generated.size(), trace.tokens.size() - 50);
      PortfolioReplay replay(kFusion, &weights);
      const AcceptanceStats logged = replay.walk_logged(trace).stats;
      AcceptanceStats live;
      for (const RoundTrace& round : trace.rounds) {
        live.rounds += 1;
        live.accepted += round.accepted;
      }
      ASSERT_EQ(logged.rounds, live.rounds);
      ASSERT_EQ(logged.accepted, live.accepted) << "at temperature " << temperature;
      ASSERT_EQ(replay.walk_fixed(trace, 4).stats.accepted, live.accepted);
      ASSERT_EQ(replay.walk_fixed(trace, 4).stats.rounds, live.rounds);
      accepted += live.accepted;
    }
    EXPECT_GT(accepted, 1000);
  }
}

TEST(ReplayScore, RanksATableAsServingItWould) {
  // Negative control: a table that prefers the wrong candidates replays worse on the log of the
  // good one, as it serves worse.
  const FusionTable good = FusionTable::initial();
  FusionTable bad = good;
  for (float& bias : bad.bias) bias = -bias;
  const auto replayed = [](const std::vector<RequestTrace>& traces, const FusionTable& table) {
    AcceptanceStats sum;
    const LearnedWeights weights = weights_with(table);
    PortfolioReplay replay(kFusion, &weights);
    for (const RequestTrace& trace : traces) sum.add(replay.walk_fixed(trace, 4).stats);
    return static_cast<double>(sum.emitted) / static_cast<double>(sum.rounds);
  };
  const auto good_traces = serve(good, 4, 0.0f, 80), bad_traces = serve(bad, 4, 0.0f, 80);
  const double good_live = replayed(good_traces, good), bad_live = replayed(bad_traces, bad);
  EXPECT_GT(good_live, bad_live + 0.05);
  EXPECT_NEAR(replayed(good_traces, bad), bad_live, 0.04 * bad_live);
  EXPECT_NEAR(replayed(bad_traces, good), good_live, 0.04 * good_live);
}

TEST(ReplayScore, HostileCandidatesAndRoundsAreLeftOut) {
  RequestTrace trace;
  trace.tokens = {1, 2, 3, 4};
  trace.n_prompt = 2;
  trace.generated.resize(3);  // one more than there are tokens
  for (auto& token : trace.generated) token.candidates.assign(kMaxCandidates, Candidate{3, 200});
  trace.rounds.resize(2);
  trace.rounds[0].start = -5;
  trace.rounds[1].start = 1 << 30;
  const LearnedWeights weights;
  PortfolioReplay replay(kinds_named("ngram", "fusion"), &weights);
  EXPECT_EQ(replay.walk_logged(trace).stats.rounds, 0);
  EXPECT_EQ(replay.walk_fixed(trace, 4).stats.drafted, 0);
}

}  // namespace
}  // namespace foretoken
