// Offline acceptance equals live acceptance: a real engine serves and logs, and the replay of its
// log (round starts, lengths and kinds taken from it) accepts exactly as many tokens in every
// round, and drafts them alike where lengths went by cost. FORETOKEN_TEST_FULL=1: 20,000 tokens of
// each speculator at each temperature.
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>

#include "foretoken/protocol/trace.h"
#include "runtime/evaluate/portfolio_replay.h"
#include "tests/support/round_replay.h"
#include "tests/support/small_model.h"

namespace foretoken::testing {
namespace {

// Requests that share much of their text, so that n-gram candidates come from both sources.
std::vector<std::string> questions() {
  const char* things[] = {"apples", "pencils", "bricks", "books", "tickets", "marbles"};
  const char* people[] = {"Tom", "Anna", "Lena", "Omar", "Grace", "Ivan"};
  std::vector<std::string> out;
  for (int i = 0; i < (full_tests() ? 140 : 36); ++i) {
    out.push_back(std::string(people[i % 6]) + " has " + std::to_string(3 + i) + " " +
                  things[(i / 2) % 6] + " and gives away " + std::to_string(1 + i % 5) + ". " +
                  people[(i + 1) % 6] + " gives " + std::to_string(2 + i % 7) + " back. How many " +
                  things[(i / 2) % 6] +
                  " are there now? Explain every step, then repeat the question.");
  }
  return out;
}

class OfflineLive : public SmallModel {
 protected:
  static void SetUpTestSuite() {
    const auto real = load(questions());
    if (!real) return;
    const std::vector<TokenId> all = all_tokens();
    // Some of the text's tokens are outside its vocabulary.
    head_ = untrained_head(real->model, all, 256, 1024, 11, 4);
    other_ = untrained_head(real->model, all, 256, 1024, 12, 5);
    eagle_ = untrained_eagle3(real->model, all, 1024, 13, 6);
    end_ = 2;  // <|im_end|>
  }
  static void TearDownTestSuite() {
    SmallModel::TearDownTestSuite();
    head_.reset();
    other_.reset();
    eagle_.reset();
  }

  struct Served {
    std::vector<RequestTrace> traces;
    EngineStats stats;
    std::int64_t tokens = 0;
  };
  static Served serve(SpecType spec, std::shared_ptr<const LearnedWeights> learned,
                      float temperature, int n_fixed, std::int64_t wanted_tokens,
                      std::shared_ptr<const LearnedWeights> canary = nullptr) {
    EngineOptions o;
    o.threads = 2;
    o.max_num_seqs = 3;
    o.max_model_len = 1024;
    o.kv_cache_dtype = KvMode::kBf16;
    o.spec_type = spec;
    o.spec_draft_n_fixed = n_fixed;
    o.spec_draft_n_max = 6;
    o.control_fraction = n_fixed < 0 ? 0.05 : 0;
    constexpr int kNewTokens = 160;
    std::vector<HarnessRequest> requests;
    for (std::int64_t i = 0; i * kNewTokens < wanted_tokens; ++i) {
      HarnessRequest r;
      r.prompt = prompts_[std::size_t(i) % prompts_.size()];
      r.sampling.temperature = temperature;
      r.sampling.seed = 900 + std::uint64_t(i);
      if (temperature > 0 && i % 2) r.sampling.top_p = 0.95f;
      r.max_tokens = kNewTokens;
      // Long answers: most end where the budget does, some at an end of their own.
      if (i % 8 == 0) r.stop_tokens = {end_};
      requests.push_back(r);
    }
    HarnessModels m = *models_;
    m.learned = learned;
    m.canary = canary;
    m.canary_fraction = canary ? 0.5 : 0;
    HarnessResult result = run_engine(m, o, requests, 3);
    Served served;
    served.stats = result.stats;
    for (auto& trace : result.traces) {
      // As the trainer sees it: through the wire.
      auto parsed = parse_trace(serialize(*trace));
      EXPECT_TRUE(parsed);
      served.tokens += std::int64_t(trace->generated.size());
      served.traces.push_back(std::move(*parsed));
    }
    return served;
  }

  static std::int64_t accepted_of(const std::vector<RequestTrace>& traces, SpecType kinds,
                                  const LearnedWeights* learned, std::int64_t* wrong_rounds) {
    PortfolioReplay replay(kinds, learned);
    std::int64_t accepted = 0;
    for (const RequestTrace& trace : traces) {
      const PortfolioWalk walk = replay.walk_logged(trace);
      EXPECT_EQ(walk.accepted.size(), trace.rounds.size());
      for (std::size_t i = 0; i < std::min(walk.accepted.size(), trace.rounds.size()); ++i) {
        *wrong_rounds += walk.accepted[i] != trace.rounds[i].accepted;
        accepted += walk.accepted[i];
      }
    }
    return accepted;
  }

  static inline std::shared_ptr<const LearnedWeights> head_, other_, eagle_;
  static inline TokenId end_ = 2;
};

TEST_F(OfflineLive, EveryRoundAcceptsAsItDidLive) {
  struct Case {
    const char* name;
    SpecType spec;
    std::shared_ptr<const LearnedWeights> head;
    int n_fixed;
    SpecType kinds;
    // Which kinds a choice by cost drafts with is for the clock to say.
    std::optional<SpeculatorKind> must_draft;
  };
  const Case cases[] = {
      {"ngram", spec_type("ngram"), nullptr, -1, spec_type("ngram"), SpeculatorKind::kNgram},
      {"suffix", spec_type("suffix"), nullptr, -1, spec_type("suffix"), speculator_kind("suffix")},
      {"fusion", spec_type("head"), nullptr, -1, kinds_named("fusion"), SpeculatorKind::kFusion},
      {"head", spec_type("head"), head_, 4, spec_type("head"), SpeculatorKind::kHead},
      {"eagle3", spec_type("head"), eagle_, 4, spec_type("head"), SpeculatorKind::kHead},
      {"auto", spec_type("auto"), head_, 4, spec_type("auto"), SpeculatorKind::kHead},
      {"auto by cost", spec_type("auto"), head_, -1, spec_type("auto"), std::nullopt},
  };
  for (const Case& c : cases) {
    for (const float temperature : {0.0f, 0.8f}) {
      SCOPED_TRACE(std::string(c.name) + " T " + std::to_string(temperature));
      const auto learned = c.head;
      const auto fusion = initial_weights();
      // Where the kinds compose, a tenth: their parts are proved by the others.
      const bool alone = c.spec != spec_type("auto");
      const std::int64_t tokens = !full_tests() ? 640 : alone ? 21500 : 2500;
      const Served served = serve(c.spec, learned, temperature, c.n_fixed, tokens);
      EXPECT_GE(served.tokens, !full_tests() ? 500 : alone ? 20000 : 2000);
      std::int64_t wrong = 0, live = 0, drafted_by_kind = 0, accepted_by_kind = 0;
      for (const RequestTrace& trace : served.traces) {
        // And it was drafted as the policy drafts when it is told the same again.
        const auto choices = replay_rounds(trace);
        ASSERT_TRUE(choices) << choices.error().message;
        for (std::size_t i = 0; i < trace.rounds.size(); ++i)
          EXPECT_EQ((*choices)[i], logged_choice(trace, i)) << "round " << i;
        for (const RoundTrace& round : trace.rounds) {
          live += round.accepted;
          for (std::size_t d = 0; d < round.kinds.size(); ++d) {
            const bool counts = !c.must_draft || round.kinds[d] == *c.must_draft;
            drafted_by_kind += counts;
            accepted_by_kind += counts && int(d) < round.accepted;
          }
        }
      }
      const std::int64_t replayed =
          accepted_of(served.traces, c.kinds, learned ? learned.get() : fusion.get(), &wrong);
      EXPECT_EQ(wrong, 0);
      EXPECT_EQ(replayed, live);
      EXPECT_EQ(live, served.stats.acceptance.accepted);
      EXPECT_GT(drafted_by_kind, 0) << "the test proves nothing";
      EXPECT_GT(accepted_by_kind, 0) << "the test proves nothing";
      std::printf("%-14s T %.1f: %lld tokens, %lld drafted by it, %lld accepted, %lld in all\n",
                  c.name, double(temperature), static_cast<long long>(served.tokens),
                  static_cast<long long>(drafted_by_kind), static_cast<long long>(accepted_by_kind),
                  static_cast<long long>(live));
      if (c.must_draft != SpeculatorKind::kHead) continue;
      // Negative controls: another head, or features of the wrong position, are another replay.
      std::int64_t differ = 0;
      accepted_of(served.traces, c.kinds, other_.get(), &differ);
      EXPECT_GT(differ, 0);
      auto shifted = served.traces;
      for (RequestTrace& trace : shifted) {
        const auto width = std::size_t(trace.n_taps * trace.tap_width);
        std::rotate(trace.tap_values.begin(), trace.tap_values.begin() + std::ptrdiff_t(width),
                    trace.tap_values.end());
      }
      differ = 0;
      accepted_of(shifted, c.kinds, learned.get(), &differ);
      EXPECT_GT(differ, 0);
      // A fixed length is also a walk of its own: round by round where the budget ended the
      // request.
      if (c.kinds.has(SpeculatorKind::kNgram) || full_tests()) continue;
      PortfolioReplay replay(c.kinds, learned.get());
      for (const RequestTrace& trace : served.traces) {
        if (trace.tokens.back() == end_) continue;
        const PortfolioWalk walk = replay.walk_fixed(trace, c.n_fixed);
        ASSERT_EQ(walk.starts.size(), trace.rounds.size());
        for (std::size_t i = 0; i < trace.rounds.size(); ++i) {
          ASSERT_EQ(walk.starts[i], trace.rounds[i].start);
          ASSERT_EQ(walk.accepted[i], trace.rounds[i].accepted);
        }
      }
    }
  }
}

// A canary drafts for its requests from the first round to the last, and the log says so.
TEST_F(OfflineLive, ACanaryDraftsForItsRequests) {
  const Served served = serve(spec_type("head"), head_, 0.0f, 3, 960, other_);
  int canaries = 0;
  for (const RequestTrace& trace : served.traces) {
    const bool canary = is_canary(trace.request, other_->version, 0.5);
    canaries += canary;
    const LearnedWeights& weights = canary ? *other_ : *head_;
    PortfolioReplay replay(spec_type("head"), &weights);
    const PortfolioWalk walk = replay.walk_logged(trace);
    ASSERT_EQ(walk.accepted.size(), trace.rounds.size());
    for (std::size_t i = 0; i < trace.rounds.size(); ++i) {
      EXPECT_EQ(trace.rounds[i].version, weights.version);
      EXPECT_EQ(walk.accepted[i], trace.rounds[i].accepted);
    }
  }
  EXPECT_GT(canaries, 0);
  EXPECT_LT(canaries, int(served.traces.size()));
}

// Lengths by cost: never dearer than not drafting at all on what it walked, and an unaffordable
// head does not run.
TEST_F(OfflineLive, AWalkByCostFollowsTheCosts) {
  const Served served = serve(spec_type("auto"), head_, 0.0f, 4, 960);
  const RoundCosts cheap =
      RoundCosts::measured(std::vector<float>{10, 10.5f, 11, 11.5f, 12, 12.5f, 13}, 0.05f, 0.05f);
  RoundCosts dear_head = cheap, dear_rows = cheap;
  dear_head.head_start = dear_head.head_step = 30;
  for (std::size_t i = 0; i < dear_rows.rounds.size(); ++i)
    dear_rows.rounds[i] = 10 * double(i + 1);
  const auto total = [&](const RoundCosts& costs) {
    PortfolioReplay replay(spec_type("auto"), head_.get());
    PortfolioWalk sum;
    for (const RequestTrace& trace : served.traces) {
      const PortfolioWalk walk = replay.walk_costed(trace, 6, costs);
      sum.stats.add(walk.stats);
      sum.head_steps += walk.head_steps;
      sum.predicted_ms += walk.predicted_ms;
    }
    return sum;
  };
  const PortfolioWalk a = total(cheap), b = total(dear_head), c = total(dear_rows);
  EXPECT_EQ(a.stats.emitted, b.stats.emitted);
  EXPECT_LT(a.predicted_ms, 10.0 * double(a.stats.emitted));
  EXPECT_LT(b.predicted_ms, 1.02 * 10.0 * double(b.stats.emitted));
  EXPECT_LT(c.predicted_ms, 1.02 * 10.0 * double(c.stats.emitted));
  EXPECT_GT(a.head_steps, 20 * std::max<std::int64_t>(1, b.head_steps));
  EXPECT_LT(c.stats.drafted, a.stats.drafted / 4);
}

}  // namespace
}  // namespace foretoken::testing
