// The gate lets through what is faster, at nobody's cost, and little else.
#include "trainer/gate/prequential_gate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "tests/unit/trainer/synthetic_traffic.h"
#include "trainer/publish/checkpoint.h"

namespace foretoken::trainer {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr std::int64_t kDay = 86'400'000;

std::shared_ptr<const LearnedWeights> weights_of(const FusionTable& table) {
  auto weights = std::make_shared<LearnedWeights>();
  weights->fusion = table;
  return weights;
}

// A table that wants the opposite of the truth.
FusionTable inverted_table() {
  FusionTable table = true_table();
  for (float& bias : table.bias) bias = -bias;
  return table;
}

const RoundCosts kCosts = RoundCosts::typical();

CandidateFacts facts(std::int64_t trained_requests = 1000) {
  return {10, 2000, trained_requests, 0.5, 77, false};
}

struct Outcome {
  PrequentialGate::Decision decision;
  int requests = 0;
};
template <class Next>
Outcome decide(PrequentialGate& gate, Next next, std::int64_t unix_ms = 0) {
  for (int i = 1; i <= 1200; ++i) {
    if (auto decisions = gate.score(next(i), unix_ms); !decisions.empty())
      return {decisions.back(), i};
  }
  ADD_FAILURE() << "no decision";
  return {};
}
auto of(SyntheticTraffic& traffic) {
  return [&traffic](int i) { return traffic.next(i % 2 ? 0.0f : 0.8f); };
}

TEST(PrequentialGate, PromotesWhatIsFasterAndServesIt) {
  PrequentialGate gate({}, initial_weights());
  EXPECT_FALSE(gate.has_candidate());
  SyntheticTraffic traffic(1);
  EXPECT_TRUE(gate.score(traffic.next(0), 0).empty());
  gate.propose(weights_of(true_table()), facts(), kCosts, 0);
  const Outcome outcome = decide(gate, of(traffic));
  EXPECT_EQ(outcome.decision.verdict, Verdict::kPromoted) << outcome.decision.record.text;
  EXPECT_FALSE(outcome.decision.too_little);
  EXPECT_GE(outcome.requests, kLeastRequests);
  EXPECT_LE(outcome.requests, 150);
  EXPECT_THAT(outcome.decision.record.text, StartsWith("promoted (fusion): "));
  EXPECT_EQ(outcome.decision.record.requests, outcome.requests);
  EXPECT_EQ(outcome.decision.record.candidate, 1u);
  double low = -1;
  for (const auto& [name, value] : outcome.decision.record.figures) {
    if (name == "fusion.gain_low") low = value;
  }
  EXPECT_GT(low, 0);
  EXPECT_EQ(gate.served().fusion.bias, true_table().bias);
  EXPECT_FALSE(gate.has_candidate());
}

TEST(PrequentialGate, RefusesWhatIsWorseAndWhatIsTheSame) {
  PrequentialGate gate({}, weights_of(true_table()));
  SyntheticTraffic traffic(2);
  gate.propose(weights_of(inverted_table()), facts(), kCosts, 0);
  const Outcome worse = decide(gate, of(traffic));
  EXPECT_EQ(worse.decision.verdict, Verdict::kInferior) << worse.decision.record.text;
  EXPECT_FALSE(worse.decision.too_little);
  EXPECT_LE(worse.requests, 100);
  gate.propose(weights_of(true_table()), facts(), kCosts, 0);
  const Outcome same = decide(gate, of(traffic));
  EXPECT_NE(same.decision.verdict, Verdict::kPromoted);
  EXPECT_TRUE(same.decision.too_little);
  EXPECT_EQ(same.decision.trained_tokens, facts().trained_tokens);
  EXPECT_THAT(same.decision.record.text, StartsWith("refused"));
  EXPECT_EQ(gate.served().fusion.bias, true_table().bias);
}

// Traffic of two kinds that want opposite things: what helps one and harms the other is refused,
// however much it helps.
TEST(PrequentialGate, GivesNoDomainUp) {
  SyntheticTraffic math(3), chat(4, inverted_table());
  const auto mixed = [&](int i) {
    RequestTrace trace = i % 5 ? math.next(0) : chat.next(0);
    trace.domain = i % 5 ? "math" : "chat";
    return trace;
  };
  FusionTable level;  // neither's
  PrequentialGate gate({}, weights_of(level));
  for (int i = 0; i < 20; ++i) gate.score(mixed(i), 0);
  gate.propose(weights_of(true_table()), facts(), kCosts, 0);
  const Outcome outcome = decide(gate, mixed);
  EXPECT_EQ(outcome.decision.verdict, Verdict::kInferior);
  EXPECT_THAT(outcome.decision.record.text, HasSubstr("worse than -2 % on chat"));
  // Without the other domain it would have passed.
  gate.propose(weights_of(true_table()), facts(), kCosts, 0);
  EXPECT_EQ(decide(gate, of(math)).decision.verdict, Verdict::kPromoted);
}

TEST(PrequentialGate, ReplacesWhatIsNeverDecided) {
  GateOptions options;
  options.test.futility_alpha = 1e-12;
  PrequentialGate gate(options, weights_of(true_table()));
  SyntheticTraffic traffic(5);
  FusionTable near = true_table();
  near.bias[7] += 0.02f;
  gate.propose(weights_of(near), facts(200), kCosts, 0);
  EXPECT_EQ(gate.state().trials[0].most_requests(), 200);
  const Outcome outcome = decide(gate, of(traffic));
  EXPECT_NE(outcome.decision.verdict, Verdict::kPromoted);
  EXPECT_LE(outcome.requests, 200);
}

// Candidates that are the true table moved at random are worse by construction (the truth is the
// optimum at temperature 0), so every promotion would be an error.
TEST(PrequentialGate, DoesNotPromoteByChance) {
  int promoted = 0;
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal(0, 0.2f);
    FusionTable candidate = true_table();
    for (float& bias : candidate.bias) bias += normal(random);
    PrequentialGate gate({}, weights_of(true_table()));
    gate.propose(weights_of(candidate), facts(150), kCosts, 0);
    for (float& bias : candidate.bias) bias += normal(random);
    gate.propose(weights_of(candidate), facts(150), kCosts, 0);
    SyntheticTraffic traffic(1000 + seed);
    while (gate.has_candidate()) {
      const Outcome outcome = decide(gate, [&](int) { return traffic.next(0, 40); });
      promoted += outcome.decision.verdict == Verdict::kPromoted;
    }
  }
  EXPECT_EQ(promoted, 0);
}

TEST(PrequentialGate, SpendsItsErrorsByTheDay) {
  PrequentialGate gate({}, initial_weights());
  const auto propose = [&](std::int64_t unix_ms) {
    gate.propose(weights_of(true_table()), facts(), kCosts, unix_ms);
    return gate.state().number_in_day;
  };
  EXPECT_EQ(propose(10 * kDay), 1);
  EXPECT_EQ(propose(10 * kDay + 5), 2);
  EXPECT_EQ(propose(9 * kDay), 3);  // a clock set back gives nothing back
  EXPECT_EQ(propose(10 * kDay + 7), 4);
  EXPECT_EQ(propose(11 * kDay), 1);
  EXPECT_EQ(gate.state().candidates, 5u);
}

TEST(PrequentialGate, WantsTheNextSnapshotOnceHalfAsMuchAgainIsLearned) {
  PrequentialGate gate({}, initial_weights());
  EXPECT_FALSE(gate.wants(5, 15));
  EXPECT_TRUE(gate.wants(5, 16));
  gate.propose(weights_of(true_table()), facts(20), kCosts, 0);  // of step 10
  EXPECT_FALSE(gate.wants(11, 29));
  EXPECT_FALSE(gate.wants(10, 30));  // nothing was learned since
  EXPECT_TRUE(gate.wants(11, 30));
}

// A first snapshot that is as good as what serves does not keep a better one waiting, and is not
// what is served once that has passed.
TEST(PrequentialGate, ABetterOneOvertakes) {
  FusionTable level;
  PrequentialGate gate({}, weights_of(level));
  SyntheticTraffic traffic(9);
  gate.propose(weights_of(level), facts(), kCosts, 0);
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(gate.score(traffic.next(0), 0).empty());
  EXPECT_FALSE(gate.propose(weights_of(true_table()), facts(), kCosts, 0));
  std::vector<PrequentialGate::Decision> decisions;
  int requests = 0;
  while (decisions.empty() || decisions.back().verdict != Verdict::kPromoted) {
    ASSERT_LT(++requests, 100);
    const auto more = gate.score(traffic.next(0), 0);
    decisions.insert(decisions.end(), more.begin(), more.end());
  }
  ASSERT_EQ(decisions.size(), 2u);
  EXPECT_EQ(decisions[0].record.candidate, 1u);
  EXPECT_NE(decisions[0].verdict, Verdict::kPromoted);
  EXPECT_EQ(decisions[1].record.candidate, 2u);
  EXPECT_EQ(gate.served().fusion.bias, true_table().bias);
  EXPECT_FALSE(gate.has_candidate());
}

// Newer ones begin again when an older one is promoted: what they gained over what served before
// says nothing now, and the second trial has an error of its own.
TEST(PrequentialGate, APromotionIsANewBarForTheOthers) {
  FusionTable level;
  PrequentialGate gate({}, weights_of(level));
  SyntheticTraffic traffic(10);
  gate.propose(weights_of(true_table()), facts(), kCosts, 0);
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(gate.score(traffic.next(0), 0).empty());
  gate.propose(weights_of(true_table()), facts(), kCosts, 0);
  const Outcome first = decide(gate, of(traffic));
  EXPECT_EQ(first.decision.verdict, Verdict::kPromoted);
  EXPECT_EQ(first.decision.record.candidate, 1u);
  ASSERT_EQ(gate.state().trials.size(), 1u);
  EXPECT_EQ(gate.state().trials[0].candidate, 2u);
  EXPECT_EQ(gate.state().trials[0].number_in_day, 3);
  EXPECT_EQ(gate.state().trials[0].tiers[0].candidate_rounds, 0);
  const Outcome second = decide(gate, of(traffic));
  EXPECT_EQ(second.decision.record.candidate, 2u);
  EXPECT_NE(second.decision.verdict, Verdict::kPromoted) << second.decision.record.text;
}

TEST(PrequentialGate, ALaterSnapshotTakesTheOldestsPlace) {
  PrequentialGate gate({}, weights_of(true_table()));
  SyntheticTraffic traffic(11);
  EXPECT_FALSE(gate.propose(weights_of(true_table()), facts(), kCosts, 0));
  EXPECT_FALSE(gate.propose(weights_of(true_table()), facts(), kCosts, 0));
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(gate.score(traffic.next(0), 0).empty());
  const auto replaced = gate.propose(weights_of(true_table()), facts(), kCosts, 0);
  ASSERT_TRUE(replaced);
  EXPECT_EQ(replaced->record.candidate, 1u);
  EXPECT_EQ(replaced->verdict, Verdict::kStale);
  EXPECT_FALSE(replaced->too_little) << "it was not heard to the end";
  EXPECT_THAT(replaced->record.text, HasSubstr("a later snapshot takes its place"));
  EXPECT_EQ(gate.state().trials.size(), PrequentialGate::kTrials);
}

TEST(PrequentialGate, StartsOverWhenSomethingElseServes) {
  PrequentialGate gate({}, initial_weights());
  SyntheticTraffic traffic(6);
  gate.propose(weights_of(true_table()), facts(), kCosts, 0);
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(gate.score(traffic.next(0), 0).empty());
  gate.set_served(weights_of(true_table()));
  EXPECT_NE(decide(gate, of(traffic)).decision.verdict, Verdict::kPromoted);
}

TEST(PrequentialGate, ARequestWithAGapIsNoEvidence) {
  PrequentialGate gate({}, initial_weights());
  gate.propose(weights_of(true_table()), facts(), kCosts, 0);
  SyntheticTraffic traffic(8);
  for (int i = 0; i < 100; ++i) {
    RequestTrace trace = traffic.next(0);
    trace.gap = true;
    EXPECT_TRUE(gate.score(trace, 0).empty());
  }
}

TEST(PrequentialGate, GoesOnFromACheckpoint) {
  const auto path =
      std::filesystem::temp_directory_path() / ("foretoken-gate-" + std::to_string(::getpid()));
  PrequentialGate first({}, initial_weights()), second({}, initial_weights());
  const auto candidate = weights_of(true_table());
  SyntheticTraffic a(7);
  a.next(0);
  first.propose(candidate, facts(),
                RoundCosts::measured(std::vector<float>{10, 11, 13, 16}, 0.5f, 0.25f), 12 * kDay);
  std::vector<RequestTrace> traces;
  for (int i = 0; i < 200; ++i) {
    traces.push_back(a.next(0));
    traces.back().domain = i % 3 ? "x" : "";
  }
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(first.score(traces[std::size_t(i)], 0).empty());
  Checkpoint checkpoint;
  checkpoint.next_sequence = 5;
  checkpoint.learner = {std::byte{1}, std::byte{2}};
  checkpoint.gate = first.state();
  checkpoint.published = {4};
  checkpoint.served = {3};
  checkpoint.verdicts = {{3, {2}, 9, 8, 7, "text", {{"fusion.gain", 0.25}}}};
  ASSERT_TRUE(write_checkpoint(path, checkpoint));
  auto read = read_checkpoint(path);
  std::filesystem::remove(path);
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(read->next_sequence, 5u);
  EXPECT_EQ(read->learner, checkpoint.learner);
  EXPECT_EQ(read->published.value, 4u);
  EXPECT_EQ(read->served.value, 3u);
  EXPECT_EQ(read->verdicts, checkpoint.verdicts);
  EXPECT_EQ(read->gate.trials, checkpoint.gate.trials);
  EXPECT_EQ(read->gate.newest, checkpoint.gate.newest);
  EXPECT_EQ(read->gate.recent, checkpoint.gate.recent);
  second.restore(read->gate, {candidate});
  EXPECT_TRUE(second.has_candidate());
  EXPECT_EQ(first.standing(), second.standing());
  const auto rest = [&](int i) { return traces[std::size_t(19 + i)]; };
  const Outcome one = decide(first, rest), two = decide(second, rest);
  EXPECT_EQ(one.decision.verdict, two.decision.verdict);
  // Its weights lost, there is no candidate.
  PrequentialGate third({}, initial_weights());
  third.restore(read->gate, {nullptr});
  EXPECT_FALSE(third.has_candidate());
}

}  // namespace
}  // namespace foretoken::trainer
