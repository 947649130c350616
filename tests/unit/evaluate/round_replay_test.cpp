// The judge runs the code of the judged: every round that a live engine recorded, told again to the
// same policy, is chosen again, kinds, lengths, confidences and cost, in rounds of several
// sequences too. FORETOKEN_TEST_FULL=1: 20,000 tokens. Then what the replay of a log knows of
// requests with logit bias and with rejection sampling.
#include "tests/support/round_replay.h"

#include <gmock/gmock.h>

#include <array>

#include "foretoken/protocol/trace.h"
#include "runtime/evaluate/portfolio_replay.h"
#include "tests/support/test_files.h"
#include "tests/unit/engine/tiny_engine.h"

namespace foretoken::testing {
namespace {

using ::testing::HasSubstr;

class RoundReplay : public TinyEngine {
 protected:
  // As the trainer sees them: through the wire.
  std::vector<RequestTrace> serve(const EngineOptions& options, const LearnedWeights* learned,
                                  std::int64_t tokens, float temperature) {
    constexpr int kNewTokens = 120;
    std::vector<HarnessRequest> requests;
    for (int i = 0; std::int64_t(i) * kNewTokens < tokens; ++i) {
      HarnessRequest r;
      // Alone and short: a draft model's first burst is affordable at once.
      r.prompt = options.max_num_seqs == 1 ? prompt(12, i) : prompt(60 + 17 * (i % 9), i % 4);
      r.sampling.temperature = temperature;
      r.sampling.seed = 400 + std::uint64_t(i);
      if (i % 3 == 1) r.sampling.logit_bias = {{7, 3.0f}, {31, -4.0f}, {100, 6.0f}, {14, 2.0f}};
      if (i % 3 == 2) r.sampling.repetition_penalty = 1.2f, r.sampling.presence_penalty = 0.3f;
      if (i % 4 == 3) r.stop_tokens = {3, 77, 200};
      r.speculation = i % 11 != 10;
      r.max_tokens = kNewTokens;
      requests.push_back(r);
    }
    HarnessModels models = models_;
    if (options.spec_type != spec_type("model") && options.spec_type != spec_type("auto"))
      models.draft = nullptr;
    for (const auto& weights : {heads_[0], heads_[1], eagle_}) {
      if (weights.get() == learned) models.learned = weights;
    }
    HarnessResult result = run_engine(models, options, requests, 5);
    std::vector<RequestTrace> traces;
    for (const auto& trace : result.traces) {
      auto parsed = parse_trace(serialize(*trace));
      EXPECT_TRUE(parsed) << parsed.error().message;
      EXPECT_EQ(parsed->policy, trace->policy);
      traces.push_back(std::move(*parsed));
    }
    return traces;
  }

  struct Differences {
    std::int64_t rounds = 0, choices = 0, lengths = 0;
  };
  static Differences differences(const RequestTrace& trace) {
    Differences d;
    const auto choices = replay_rounds(trace);
    EXPECT_TRUE(choices) << choices.error().message;
    if (!choices) return d;
    EXPECT_EQ(choices->size(), trace.rounds.size());
    for (std::size_t i = 0; i < choices->size(); ++i) {
      const RoundChoice logged = logged_choice(trace, i);
      ++d.rounds;
      d.choices += (*choices)[i] != logged;
      d.lengths += (*choices)[i].kinds.size() != logged.kinds.size();
    }
    return d;
  }
};

TEST_F(RoundReplay, EveryRecordedRoundIsChosenAgain) {
  struct Case {
    const char* name;
    SpecType spec;
    int n_fixed;
    const LearnedWeights* learned;
    int max_num_seqs = 3;
    SpecSampling sampling = SpecSampling::kInvariant;
  };
  const LearnedWeights *head = heads_[0].get(), *eagle = eagle_.get();
  const Case cases[] = {
      {"ngram", spec_type("ngram"), -1, nullptr},
      {"suffix", spec_type("suffix"), -1, nullptr},
      {"head", spec_type("head"), -1, head},
      {"head, fixed", spec_type("head"), 4, eagle},
      {"model", spec_type("model"), -1, nullptr, 1},
      {"auto", spec_type("auto"), -1, head},
      {"auto, fixed", spec_type("auto"), 5, head},
      {"auto, rejection", spec_type("auto"), -1, eagle, 3, SpecSampling::kRejection}};
  const std::int64_t tokens = full_tests() ? 2400 : 360;
  std::int64_t n_tokens = 0, together = 0, dearer = 0, dearer_lengths = 0;
  std::array<std::int64_t, kSpeculatorKinds> drafted{};
  for (const Case& c : cases) {
    for (const float temperature : {0.0f, 0.8f}) {
      SCOPED_TRACE(std::string(c.name) + " T " + std::to_string(temperature));
      EngineOptions o = options();
      o.max_num_seqs = c.max_num_seqs;
      o.spec_type = c.spec;
      o.spec_draft_n_fixed = c.n_fixed;
      o.spec_sampling = c.sampling;
      o.spec_draft_n_max = 6;
      o.control_fraction = 0.05;
      std::int64_t rounds = 0;
      for (RequestTrace& trace : serve(o, c.learned, tokens, temperature)) {
        n_tokens += std::int64_t(trace.generated.size());
        const Differences d = differences(trace);
        EXPECT_EQ(d.choices, 0);
        rounds += d.rounds;
        for (const RoundTrace& round : trace.rounds)
          for (const SpeculatorKind kind : round.kinds) ++drafted[std::size_t(kind)];
        // Negative control: one more row costs one per cent more.
        std::size_t at = 0;
        for (const PolicyRound& round : trace.policy.rounds) {
          together += round.n_jobs > 1;
          if (round.n_jobs > 0) trace.policy.costs[at + std::size_t(round.n_jobs)] *= 1.01;
          at += std::size_t(round.n_costs);
        }
        const Differences altered = differences(trace);
        dearer += altered.choices;
        dearer_lengths += altered.lengths;
      }
      EXPECT_GT(rounds, 20);
    }
  }
  EXPECT_GE(n_tokens, full_tests() ? 20000 : 2000);
  EXPECT_GT(together, n_tokens / 10);
  EXPECT_GT(dearer, 0);
  // (Where the length stays, the round's cost is another.)
  if (full_tests()) {
    EXPECT_GT(dearer_lengths, 0);
  }
  for (const auto kind : {SpeculatorKind::kNgram, SpeculatorKind::kFusion, SpeculatorKind::kModel,
                          SpeculatorKind::kHead})
    EXPECT_GT(drafted[std::size_t(kind)], 0) << int(kind);
  std::printf(
      "%lld tokens; %lld rounds chosen otherwise, %lld of them another length, where a row "
      "costs 1 %% more\n",
      static_cast<long long>(n_tokens), static_cast<long long>(dearer),
      static_cast<long long>(dearer_lengths));
}

TEST_F(RoundReplay, WhatTheRecordLacksIsNamed) {
  EngineOptions o = options();
  o.spec_type = spec_type("auto");
  o.spec_draft_n_fixed = 3;
  const auto traces = serve(o, heads_[0].get(), 100, 0.0f);
  ASSERT_FALSE(traces.empty());
  const auto error_of = [](const RequestTrace& trace) {
    const auto choices = replay_rounds(trace);
    return choices ? std::string() : choices.error().message;
  };
  ASSERT_EQ(error_of(traces[0]), "");
  RequestTrace old = traces[0];
  old.policy = {};
  EXPECT_THAT(error_of(old), HasSubstr("not recorded"));
  EXPECT_THAT(error_of(old), HasSubstr("request " + std::to_string(old.request.value)));
  // A replay that decides by itself goes on, as if nothing were missing. (How much is accepted of
  // an untrained head depends on the instruction set, and may be nothing.)
  PortfolioReplay with(spec_type("auto"), heads_[0].get());
  PortfolioReplay without(spec_type("auto"), heads_[0].get());
  const PortfolioWalk walk = without.walk_fixed(old, 3);
  EXPECT_GT(walk.stats.drafted, 0);
  EXPECT_EQ(walk.accepted, with.walk_fixed(traces[0], 3).accepted);
  RequestTrace gap = traces[0];
  gap.gap = true;
  EXPECT_THAT(error_of(gap), HasSubstr("gap"));
  RequestTrace cut = traces[0];
  cut.policy.costs.pop_back();
  EXPECT_THAT(error_of(cut), HasSubstr("not whole"));
  // Another thing told is another choice.
  RequestTrace told = traces[0];
  for (std::uint8_t& as : told.policy.told_as) as = std::uint8_t(as & ~kToldAgrees);
  EXPECT_GT(differences(told).choices, 0);
}

// What was accepted live is accepted in the replay of the log, where the request biased its logits
// and where drafts did not know the noise; and no longer where the log does not say so.
TEST_F(RoundReplay, BiasAndRejectionAreReplayedAsTheyRan) {
  for (const SpecSampling rule : {SpecSampling::kInvariant, SpecSampling::kRejection}) {
    for (const auto& learned : {heads_[0], eagle_}) {
      EngineOptions o = options();
      o.max_num_seqs = 3;
      o.spec_type = spec_type("head");
      o.spec_draft_n_fixed = 4;
      o.spec_sampling = rule;
      std::int64_t accepted = 0, unbiased = 0, other_rule = 0;
      for (const RequestTrace& trace : serve(o, learned.get(), 1200, 0.8f)) {
        const auto wrong = [&](const RequestTrace& as) {
          PortfolioReplay replay(spec_type("head"), learned.get());
          const PortfolioWalk walk = replay.walk_logged(as);
          EXPECT_EQ(walk.accepted.size(), trace.rounds.size());
          std::int64_t wrong = 0;
          for (std::size_t i = 0; i < std::min(walk.accepted.size(), trace.rounds.size()); ++i)
            wrong += walk.accepted[i] != trace.rounds[i].accepted;
          return wrong;
        };
        EXPECT_EQ(wrong(trace), 0);
        for (const RoundTrace& round : trace.rounds) accepted += round.accepted;
        RequestTrace as = trace;
        as.sampling.logit_bias.clear();
        unbiased += wrong(as);
        as = trace;
        as.sampling.rejection = !as.sampling.rejection;
        other_rule += wrong(as);
      }
      EXPECT_GT(accepted, 20);
      EXPECT_GT(unbiased, 0);
      EXPECT_GT(other_rule, 0);
    }
  }
}

}  // namespace
}  // namespace foretoken::testing
