// The head among the speculators: it runs where it pays, hardly where it does not, never without
// features of the right position, and a warm round with it allocates nothing.
#include <gtest/gtest.h>

#include <random>

#include "runtime/model/feature_rows.h"
#include "runtime/speculate/head/initial_head.h"
#include "runtime/speculate/portfolio.h"
#include "tests/support/count_allocations.h"
#include "tests/support/gguf_writer.h"

namespace foretoken::testing {
namespace {

constexpr int kSequences = 2, kDraft = 6;
constexpr std::array<float, kHeadTaps> kScales = {1, 2, 0.5f, 1};

// A target that says what the head would with probability `head`, drafted or not, what fusion would
// with probability `cheap`, else something that nobody does; and a machine whose rounds take
// verify_ms whatever the head's own steps took on this one.
struct World {
  double head = 0.8, cheap = 0.1, verify_ms = 1000;
};

struct Totals {
  std::int64_t rounds = 0, head_rounds = 0, head_steps = 0, emitted = 0, allocations = 0;
};

class HeadPortfolio : public ::testing::Test {
 protected:
  void SetUp() override {
    TinyModelOptions tiny;
    write_tiny_model(folder_.file("tiny.gguf"), tiny);
    auto rows = VocabularyRows::open(folder_.file("tiny.gguf"));
    ASSERT_TRUE(rows) << rows.error().message;
    hidden_ = (*rows)->hidden();
    features_ =
        std::make_unique<HostFeatureRows>(head_taps((*rows)->n_layers()), hidden_, 1, kSequences);
    std::vector<TokenId> vocab(160);
    for (std::size_t i = 0; i < vocab.size(); ++i) vocab[i] = TokenId(2 * i);
    for (std::uint64_t i = 0; i < 2; ++i) {
      auto head = RecurrentHead::create(initial_head(hidden_, 64, vocab, 5 + i), *rows);
      ASSERT_TRUE(head) << head.error().message;
      weights_[i].version.value = 1 + i;
      weights_[i].head = heads_[i] = *head;
    }
  }

  PortfolioOptions options() const {
    PortfolioOptions o;
    o.features = features_.get();
    o.model_step_bytes = 1 << 30;
    o.max_draft = kDraft;
    o.max_sequences = kSequences;
    o.max_tokens = 4096;
    o.store_bytes = 1 << 20;
    return o;
  }

  void features_of(std::int64_t position) {
    std::vector<std::uint16_t>& values = values_;
    values.resize(std::size_t(kHeadTaps * hidden_));
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = std::uint16_t(0x3400 + (i * 37 + std::size_t(position) * 101) % 2048);
  }
  void give_features(int slot, std::int64_t position) {
    features_of(position);
    features_->restore(slot, position, values_.data(), kScales.data());
  }

  // Rounds of both sequences in lockstep, the second drafting with the canary's weights.
  Totals serve(const World& world, int rounds, int warm_up) {
    kernels::ThreadPool pool(1);
    Portfolio portfolio(options(), nullptr, pool);
    portfolio.prepare(&weights_[0], &weights_[1]);
    const std::array oracles = {heads_[0]->make_workspace(1), heads_[1]->make_workspace(1)};
    std::vector<float> features(std::size_t(kHeadTaps * hidden_));
    std::mt19937_64 random(3);
    std::uniform_real_distribution<> uniform;
    SamplingParams sampling;
    sampling.temperature = 0;
    std::vector<std::vector<TokenId>> tokens(kSequences);
    std::vector<DraftJob> jobs(kSequences);
    std::vector<TokenId> emitted;
    for (int s = 0; s < kSequences; ++s) {
      auto& t = tokens[std::size_t(s)];
      t.reserve(4096);
      for (int i = 0; i < 50; ++i) t.push_back(TokenId((i * 7 + s) % 60));
      jobs[std::size_t(s)].context = {.slot = s,
                                      .tokens = t,
                                      .sampling = &sampling,
                                      .store = portfolio.acquire_store(""),
                                      .learned = &weights_[std::size_t(s)]};
      portfolio.open(jobs[std::size_t(s)].context);
      give_features(s, 48);
    }
    emitted.reserve(kDraft + 1);
    Totals totals;
    std::int64_t before = 0;
    for (int round = 0; round < warm_up + rounds; ++round) {
      if (round == warm_up) totals = {}, before = allocations;
      for (int s = 0; s < kSequences; ++s) {
        jobs[std::size_t(s)].context.tokens = tokens[std::size_t(s)];
        jobs[std::size_t(s)].max_tokens = kDraft;
      }
      portfolio.draft(jobs, false, 0, 1000);
      ++totals.rounds;
      totals.head_steps += portfolio.head_steps();
      totals.head_rounds += portfolio.head_steps() > 0;
      RoundMeasurement m;
      m.sequences = kSequences;
      m.verify_ms = world.verify_ms;
      for (int s = 0; s < kSequences; ++s) {
        const DraftJob& job = jobs[std::size_t(s)];
        emitted.clear();
        int accepted = 0;
        HostHeadWorkspace& oracle = *oracles[std::size_t(s)];
        features_of(std::int64_t(tokens[std::size_t(s)].size()) - 2);
        FeatureView{values_.data(), kScales.data(), hidden_, 0, 1}.decode(0, kHeadTaps,
                                                                          features.data());
        RecurrentHead::begin(features.data(), 1, oracle, pool);
        TokenId previous = tokens[std::size_t(s)].back();
        for (std::size_t d = 0;; ++d) {
          oracle.step(std::span(&previous, 1), pool);
          const std::span<const TokenId> path(emitted);
          const Proposal by_head =
              oracle.choose(0, portfolio.sources().candidates(job.context, path), sampling,
                            std::int64_t(tokens[std::size_t(s)].size() + d), true);
          const ProposalList by_fusion =
              portfolio.sources().propose(job.context, path, spec_type("head"));
          const double u = uniform(random);
          // Odd ones are outside the head's vocabulary, and these are seldom candidates.
          previous = u < world.head ? by_head.token
                     : u < world.head + world.cheap && !by_fusion.empty()
                         ? by_fusion[0].token
                         : TokenId(1 + 2 * (random() % 150));
          emitted.push_back(previous);
          if (d == job.draft.tokens.size() || job.draft.tokens[d] != previous) break;
          ++accepted;
        }
        m.rows += 1 + int(job.draft.tokens.size());
        m.emitted += int(emitted.size());
        DraftOutcome outcome;
        outcome.context = job.context;
        outcome.draft = &job.draft;
        outcome.accepted = accepted;
        outcome.emitted = emitted;
        portfolio.observe(outcome);
        auto& t = tokens[std::size_t(s)];
        t.insert(t.end(), emitted.begin(), emitted.end());
        give_features(s, std::int64_t(t.size()) - 2);
      }
      portfolio.measured(m);
      totals.emitted += m.emitted;
    }
    totals.allocations = allocations - before;
    return totals;
  }

  TemporaryDirectory folder_;
  std::int64_t hidden_ = 0;
  std::unique_ptr<HostFeatureRows> features_;
  std::array<std::shared_ptr<const RecurrentHead>, 2> heads_;
  std::array<LearnedWeights, 2> weights_;
  std::vector<std::uint16_t> values_;
};

TEST_F(HeadPortfolio, RunsWhereItPays) {
  const Totals good = serve({.head = 0.8}, 200, 100);
  EXPECT_GT(good.head_rounds, good.rounds * 9 / 10);
  EXPECT_GT(good.emitted, 2 * good.rounds * kSequences);
  EXPECT_EQ(good.allocations, 0);
}

TEST_F(HeadPortfolio, HardlyRunsWhereItIsWrong) {
  const Totals bad =
      serve({.head = 0.0, .verify_ms = 0.3}, 200, 200);  // a step is a tenth of a round or so
  EXPECT_LT(bad.head_rounds, bad.rounds / 4);
  EXPECT_EQ(bad.allocations, 0);
}

TEST_F(HeadPortfolio, HardlyRunsWhereItIsDear) {
  // A step costs many rounds: only what the budget of exploration buys.
  const Totals dear = serve({.head = 0.9, .verify_ms = 1e-4}, 200, 100);
  EXPECT_LT(dear.head_rounds, dear.rounds / 10);
}

TEST_F(HeadPortfolio, WithoutFeaturesOfTheRightPositionOthersDraft) {
  kernels::ThreadPool pool(1);
  PortfolioOptions o = options();
  o.kinds = spec_type("head");
  o.n_fixed = 3;
  Portfolio portfolio(o, nullptr, pool);
  portfolio.prepare(&weights_[0], &weights_[1]);
  SamplingParams sampling;
  sampling.temperature = 0;
  std::vector<TokenId> tokens;
  for (int i = 0; i < 60; ++i) tokens.push_back(TokenId(i % 9));
  DraftJob job;
  job.context = {.slot = 0,
                 .tokens = tokens,
                 .sampling = &sampling,
                 .store = portfolio.acquire_store(""),
                 .learned = &weights_[0]};
  portfolio.open(job.context);
  const auto kinds = [&] {
    job.max_tokens = 3;
    portfolio.draft(std::span(&job, 1), false, 0, 100);
    return job.draft.kinds;
  };
  const std::vector<SpeculatorKind> fusion(3, SpeculatorKind::kFusion),
      head(3, SpeculatorKind::kHead);
  EXPECT_EQ(kinds(), fusion);
  give_features(0, 57);
  EXPECT_EQ(kinds(), fusion);
  give_features(0, 58);
  EXPECT_EQ(kinds(), head);
  job.context.learned = nullptr;  // as shipped
  EXPECT_EQ(kinds(), fusion);
  job.context.learned = &weights_[1];  // swapped in between two rounds: the features serve it too
  EXPECT_EQ(kinds(), head);
  portfolio.draft(std::span(&job, 1), true, 0, 100);  // a control round
  EXPECT_TRUE(job.draft.tokens.empty());
  EXPECT_EQ(portfolio.head_steps(), 0);
  portfolio.close(job.context, false, false);
  portfolio.acquire_store("");
  portfolio.open(job.context);  // the slot's next sequence does not read the last one's
  EXPECT_EQ(kinds(), fusion);
}

}  // namespace
}  // namespace foretoken::testing
