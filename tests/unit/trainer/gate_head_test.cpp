// The gate and the recurrent head: a head that knows the language by heart is served where it costs
// little, and is not where it costs more than it brings, fusion alone being judged beside it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "runtime/model/feature_rows.h"
#include "runtime/speculate/head/initial_head.h"
#include "tests/support/gguf_writer.h"
#include "trainer/gate/prequential_gate.h"

namespace foretoken::trainer {
namespace {

using ::testing::HasSubstr;

constexpr std::int64_t kHidden = 128;
constexpr int kTokens = 16;  // of the language; each has one likely successor

class GateHead : public ::testing::Test {
 protected:
  void SetUp() override {
    foretoken::testing::TinyModelOptions options;
    options.hidden = int(kHidden);
    write_tiny_model(folder_.file("tiny.gguf"), options);
    auto rows = VocabularyRows::open(folder_.file("tiny.gguf"));
    ASSERT_TRUE(rows) << rows.error().message;
    rows_ = *rows;
    for (int i = 0; i < kTokens; ++i) vocab_.push_back(TokenId(7 * i + 3));
    auto weights = std::make_shared<LearnedWeights>();
    weights->head = by_heart();
    candidate_ = weights;
  }

  TokenId next(TokenId token) const {
    const int at = int(std::ranges::find(vocab_, token) - vocab_.begin());
    return vocab_[std::size_t((5 * at + 3) % kTokens)];
  }
  std::vector<float> unit(TokenId token, bool output) const {
    std::vector<float> row(std::size_t(kHidden), 0.0f);
    output ? rows_->output(token, row.data()) : rows_->embedding(token, row.data());
    float squares = 0;
    for (const float v : row) squares += v * v;
    for (float& v : row) v /= std::sqrt(squares);
    return row;
  }
  // step = sum over tokens of output(next) embedding(token)^T: random rows of 128 are nearly
  // orthogonal.
  std::shared_ptr<const RecurrentHead> by_heart() const {
    HeadParts parts = initial_head(kHidden, 64, vocab_, 7);
    std::vector<float> step(std::size_t(kHidden * 2 * kHidden), 0.0f);
    for (const TokenId token : vocab_) {
      const auto from = unit(token, false), to = unit(next(token), true);
      for (std::int64_t o = 0; o < kHidden; ++o) {
        for (std::int64_t i = 0; i < kHidden; ++i)
          step[std::size_t(o * 2 * kHidden + i)] += 100 * to[std::size_t(o)] * from[std::size_t(i)];
      }
    }
    parts.step = quantized(step);
    parts.gain = 4;
    auto head = RecurrentHead::create(parts, rows_);
    EXPECT_TRUE(head) << head.error().message;
    return *head;
  }

  RequestTrace request(bool features = true) {
    RequestTrace trace;
    trace.n_prompt = 4;
    for (int i = 0; i < 4; ++i) trace.tokens.push_back(any());
    for (int i = 0; i < 60; ++i) {
      trace.tokens.push_back(random_() % 8 ? next(trace.tokens.back()) : any());
      GeneratedTokenTrace& generated = trace.generated.emplace_back();
      if (misleading_) {
        generated.candidates = {{any(), 3}, {random_() % 10 ? trace.tokens.back() : any(), 20}};
        continue;
      }
      // An n-gram candidate now and then, right half of the time.
      if (random_() % 4 == 0)
        generated.candidates = {{random_() % 2 ? trace.tokens.back() : any(), 3}};
    }
    if (!features) return trace;
    trace.n_taps = kHeadTaps;
    trace.tap_width = std::int32_t(kHidden);
    trace.tap_first = 0;
    std::normal_distribution<float> normal(0, 3);
    std::vector<float> taps(std::size_t(kHeadTaps * kHidden));
    for (std::size_t position = 0; position + 1 < trace.tokens.size(); ++position) {
      for (float& v : taps) v = normal(random_);
      trace.tap_values.resize(trace.tap_values.size() + taps.size());
      trace.tap_scales.resize(trace.tap_scales.size() + kHeadTaps);
      encode_features(taps.data(), kHidden, &trace.tap_values[position * taps.size()],
                      &trace.tap_scales[position * kHeadTaps]);
    }
    return trace;
  }
  TokenId any() { return vocab_[random_() % kTokens]; }

  PrequentialGate::Decision decide(PrequentialGate& gate) {
    for (int i = 0; i < 1200; ++i) {
      if (auto decisions = gate.score(request(), 0); !decisions.empty()) return decisions.back();
    }
    ADD_FAILURE() << "no decision";
    return {};
  }

  foretoken::testing::TemporaryDirectory folder_;
  std::shared_ptr<const VocabularyRows> rows_;
  std::vector<TokenId> vocab_;
  std::shared_ptr<const LearnedWeights> candidate_;
  bool misleading_ = false;
  std::mt19937_64 random_{5};
};

const CandidateFacts kFacts{10, 2000, 300, 0.5, 77, true};
const std::vector<float> kRoundMs = {10, 10.5f, 11, 11.5f, 12, 12.5f, 13, 13.5f, 14};

TEST_F(GateHead, IsPromotedWhereItCostsLittle) {
  for (const RoundPlan plan : {RoundPlan::kByCost, RoundPlan::kFixed}) {
    GateOptions options;
    options.plan = plan;
    options.draft_length = 4;
    PrequentialGate gate(options, initial_weights());
    gate.propose(candidate_, kFacts, RoundCosts::measured(kRoundMs, 0.1f, 0.1f), 0);
    const auto decision = decide(gate);
    EXPECT_EQ(decision.verdict, Verdict::kPromoted) << decision.record.text;
    EXPECT_EQ(decision.tier, Tier::kHead);
    EXPECT_THAT(decision.record.text, HasSubstr("promoted (fusion+head)"));
    EXPECT_NE(gate.served().head, nullptr);
    EXPECT_LT(decision.record.requests, 100);
  }
}

// Every step as dear as a round. Where drafts are as long as they pay it does not run, and gains
// nothing; at a fixed length it is shown to be slower.
TEST_F(GateHead, IsNotPromotedWhereItCostsMoreThanItBrings) {
  for (const RoundPlan plan : {RoundPlan::kByCost, RoundPlan::kFixed}) {
    GateOptions options;
    options.plan = plan;
    options.draft_length = 4;
    PrequentialGate gate(options, initial_weights());
    gate.propose(candidate_, kFacts, RoundCosts::measured(kRoundMs, 10, 10), 0);
    const auto decision = decide(gate);
    EXPECT_NE(decision.verdict, Verdict::kPromoted) << decision.record.text;
    EXPECT_EQ(gate.served().head, nullptr);
    if (plan == RoundPlan::kFixed) {
      EXPECT_THAT(decision.record.text, HasSubstr("fusion+head: inferior"));
    }
  }
}

// Its fusion table passes while its head does not: the own context misleads, and the table knows.
TEST_F(GateHead, FusionAloneIsServedWhereOnlyItGains) {
  misleading_ = true;
  auto candidate = std::make_shared<LearnedWeights>(*candidate_);
  candidate->fusion.bias[3] = -3;
  candidate->fusion.bias[20] = 4;
  PrequentialGate gate({}, initial_weights());
  gate.propose(candidate, kFacts, RoundCosts::measured(kRoundMs, 30, 30), 0);
  const auto decision = decide(gate);
  EXPECT_EQ(decision.verdict, Verdict::kPromoted) << decision.record.text;
  EXPECT_EQ(decision.tier, Tier::kFusion);
  EXPECT_EQ(gate.served().head, nullptr);
  EXPECT_EQ(gate.served().fusion.bias[20], 4);
}

TEST_F(GateHead, WithoutFeaturesThereIsNoEvidence) {
  auto served = std::make_shared<LearnedWeights>();
  served->head = candidate_->head;
  PrequentialGate gate({}, served);
  gate.propose(candidate_, kFacts, RoundCosts::typical(), 0);
  for (int i = 0; i < 50; ++i) EXPECT_TRUE(gate.score(request(false), 0).empty());
  EXPECT_EQ(gate.state().trials[0].tiers[0].served_rounds, 0);
}

// What serves has a head: a candidate of fusion alone must beat all of it.
TEST_F(GateHead, AHeadThatServesIsWhatMustBeBeaten) {
  GateOptions options;
  PrequentialGate gate(options, candidate_);
  CandidateFacts facts = kFacts;
  facts.has_head = false;
  gate.propose(initial_weights(), facts, RoundCosts::measured(kRoundMs, 0.1f, 0.1f), 0);
  const auto decision = decide(gate);
  EXPECT_EQ(decision.verdict, Verdict::kInferior) << decision.record.text;
  EXPECT_NE(gate.served().head, nullptr);
}

// A trial that was warmed up with fifty requests knows what one knows that has scored them, and has
// counted nothing: the next request costs the same.
TEST_F(GateHead, AWarmedUpTrialIsCalibratedAsOneThatHasScored) {
  std::vector<RequestTrace> earlier;
  for (int i = 0; i < 50; ++i) earlier.push_back(request());
  const RequestTrace next = request();
  GateOptions options;
  options.test.least_requests = 1000;  // no decision meanwhile
  const auto costs_of_next = [&](bool warm, bool score) {
    PrequentialGate gate(options, initial_weights());
    gate.propose(candidate_, kFacts, RoundCosts::measured(kRoundMs, 0.1f, 0.1f), 0);
    EXPECT_TRUE(gate.is_cold());
    PairedSums before;
    for (const RequestTrace& trace : earlier) {
      if (warm) gate.warm(trace);
      if (score) {
        EXPECT_TRUE(gate.score(trace, 0).empty());
      }
    }
    const auto sums = [&] {
      PairedSums all;
      for (const auto& [domain, s] : gate.state().trials[0].tiers[1].domains) all.add(s);
      return all;
    };
    before = sums();
    EXPECT_EQ(before.requests, score ? 50 : 0);
    gate.score(next, 0);
    EXPECT_FALSE(gate.is_cold());
    gate.warm(earlier[0]);  // too late: no trial is cold
    return std::pair(sums().candidate - before.candidate, sums().served - before.served);
  };
  const auto scored = costs_of_next(false, true), warmed = costs_of_next(true, false);
  EXPECT_NEAR(warmed.first, scored.first, 1e-6);
  EXPECT_NEAR(warmed.second, scored.second, 1e-6);
  EXPECT_NE(costs_of_next(false, false).first, warmed.first);
}

}  // namespace
}  // namespace foretoken::trainer
