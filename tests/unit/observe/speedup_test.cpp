#include "runtime/observe/speedup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>

namespace foretoken {
namespace {

// Rounds of a server whose truth is known: at n sequences a round without speculation takes
// `plain(n)` ms for n tokens, one with it `drafted(n)` ms for more; a machine whose speed drifts,
// and noise from round to round that remembers itself.
struct Server {
  explicit Server(std::uint64_t seed) : random(seed), coin(0.03, seed * 31 + 7) {}
  double drift = 0.02, memory = 0.999, noise = 0.1;
  double plain_ms = 10, plain_row_ms = 0.8, drafted_factor = 1.25, tokens_per_sequence = 1.9;
  std::function<double(int)> draft_gain = [](int) { return 1.0; };

  SpeedupRound round(int sequences, double context = 300) {
    log_speed = memory * log_speed + drift * normal(random);
    autocorrelated = 0.8 * autocorrelated + noise * 0.6 * normal(random);
    SpeedupRound r;
    r.sequences = sequences;
    r.context = context;
    r.probability = coin.fraction();
    r.control = coin.toss();
    double ms = plain_ms + plain_row_ms * (sequences - 1);
    r.tokens = sequences;
    if (!r.control) {
      ms *= drafted_factor;
      std::poisson_distribution<int> accepted((tokens_per_sequence - 1) * draft_gain(sequences));
      for (int s = 0; s < sequences; ++s) r.tokens += accepted(random);
    }
    r.ms = ms * std::exp(log_speed + autocorrelated);
    return r;
  }
  double truth(int sequences) const {
    return (1 + (tokens_per_sequence - 1) * draft_gain(sequences)) / drafted_factor;
  }

  std::mt19937_64 random;
  ControlCoin coin;
  std::normal_distribution<> normal;
  double log_speed = 0, autocorrelated = 0;
};

TEST(ControlCoin, FallsAtItsRateAndReplays) {
  ControlCoin a(0.03, 9), b(0.03, 9);
  int heads = 0;
  for (int i = 0; i < 100000; ++i) {
    const bool toss = a.toss();
    EXPECT_EQ(toss, b.toss());
    heads += toss ? 1 : 0;
  }
  EXPECT_NEAR(heads, 3000, 4 * std::sqrt(3000));
}

TEST(Speedup, IntervalCoversTheTruthAtItsLevelOnADriftingNoisyMachine) {
  for (const int rounds : {3000, 12000}) {
    int covered = 0, reported = 0;
    double width = 0, bias = 0;
    constexpr int kSeeds = 300;
    for (int seed = 1; seed <= kSeeds; ++seed) {
      Server server(static_cast<std::uint64_t>(seed));
      SpeedupSums sums;
      for (int i = 0; i < rounds; ++i) sums.record(server.round(1));
      const auto interval = sums.estimate();
      if (!interval) continue;
      ++reported;
      covered += interval->low <= server.truth(1) && server.truth(1) <= interval->high ? 1 : 0;
      width += std::log(interval->high / interval->low);
      bias += std::log(interval->value / server.truth(1));
    }
    EXPECT_GE(reported, kSeeds * 99 / 100);
    EXPECT_GE(covered, reported * 91 / 100) << rounds << " rounds";
    EXPECT_LE(covered, reported * 995 / 1000) << "an interval that never misses says nothing";
    EXPECT_NEAR(bias / reported, 0, 0.01);
    RecordProperty("covered_of_300_at_" + std::to_string(rounds), covered);
    RecordProperty("log_width_permille_at_" + std::to_string(rounds),
                   static_cast<int>(1000 * width / reported));
  }
}

TEST(Speedup, StratificationIsRightWhereTheNaiveRatioIsNot) {
  // Control rounds are made more likely when one sequence runs than when eight do (an operator may
  // change the fraction with load; so may we): rates per token differ five times between the two,
  // so pooling rounds without weights or strata compares different loads.
  const auto one_truth = 1.5, eight_truth = 1.1;
  SpeedupSums sums;
  double naive_control_ms = 0, naive_control_tokens = 0, naive_ms = 0, naive_tokens = 0;
  double treated_tokens[2] = {}, plain_per_token[2] = {10.0, 2.0};
  std::mt19937_64 random(4);
  std::normal_distribution<> normal;
  for (int i = 0; i < 60000; ++i) {
    const bool eight = random() % 2 == 0;
    SpeedupRound r;
    r.sequences = eight ? 8 : 1;
    r.context = 100;
    r.probability = eight ? 0.02 : 0.2;
    r.control = std::uniform_real_distribution<>()(random) < r.probability;
    r.tokens = r.control ? r.sequences : 2 * r.sequences;
    const double per_token = plain_per_token[eight] / (r.control ? 1.0
                                                       : eight   ? eight_truth
                                                                 : one_truth);
    r.ms = per_token * static_cast<double>(r.tokens) * std::exp(0.05 * normal(random));
    sums.record(r);
    (r.control ? naive_control_ms : naive_ms) += r.ms;
    (r.control ? naive_control_tokens : naive_tokens) += static_cast<double>(r.tokens);
    if (!r.control) treated_tokens[eight] += static_cast<double>(r.tokens);
  }
  // What the treated tokens would have taken without speculation, over what they took. (The weights
  // undo the coin, so tokens count as if both loads had been treated at the same rate.)
  const double n1 = treated_tokens[0] / 0.8, n8 = treated_tokens[1] / 0.98;
  const double truth =
      (n1 * plain_per_token[0] + n8 * plain_per_token[1]) /
      (n1 * plain_per_token[0] / one_truth + n8 * plain_per_token[1] / eight_truth);
  const double naive = (naive_control_ms / naive_control_tokens) / (naive_ms / naive_tokens);
  const auto interval = sums.estimate();
  ASSERT_TRUE(interval);
  EXPECT_NEAR(interval->value, truth, 0.01);
  EXPECT_LE(interval->low, truth);
  EXPECT_GE(interval->high, truth);
  EXPECT_GT(std::abs(naive - truth), 0.3) << "the test would prove nothing if pooling were right";
}

TEST(Speedup, NothingIsReportedWithoutEnoughControlRounds) {
  Server server(5);
  SpeedupSums sums;
  EXPECT_FALSE(sums.estimate());
  for (int i = 0; i < 5000; ++i) {
    auto r = server.round(1);
    if (!r.control) sums.record(r);
  }
  EXPECT_FALSE(sums.estimate());
  EXPECT_EQ(sums.control_rounds(), 0);
}

TEST(Speedup, AStratumWithoutControlRoundsIsLeftOutOfBothSums) {
  Server server(6);
  SpeedupSums sums;
  for (int i = 0; i < 8000; ++i) sums.record(server.round(1));
  const auto before = sums.estimate();
  for (int i = 0; i < 2000; ++i) {
    auto r = server.round(5);
    r.control = false;
    r.ms *= 100;
    sums.record(r);
  }
  ASSERT_TRUE(before);
  EXPECT_DOUBLE_EQ(sums.estimate()->value, before->value);
  EXPECT_LT(sums.coverage(), 0.9);
}

TEST(Speedup, AnySpanIsADifferenceOfSnapshotsAlsoThroughBytes) {
  Server server(7);
  SpeedupSums sums;
  server.drafted_factor = 1.9;  // no gain at first
  for (int i = 0; i < 10000; ++i) sums.record(server.round(1));
  const double early = server.truth(1);
  const std::string text = sums.text();
  server.drafted_factor = 1.2;  // then learned
  for (int i = 0; i < 20000; ++i) sums.record(server.round(1));
  const auto mark = SpeedupSums::from_text(text);
  ASSERT_TRUE(mark.ok());
  const auto last = (sums - *mark).estimate();
  ASSERT_TRUE(last);
  EXPECT_NEAR(last->value, server.truth(1), 0.08 * server.truth(1));
  EXPECT_NEAR(mark->estimate()->value, early, 0.08);
  EXPECT_LT(sums.estimate()->value, last->value);

  const auto refused = [](const std::string& damaged) {
    const auto read = SpeedupSums::from_text(damaged);
    return read ? "taken" : read.error().message;
  };
  EXPECT_EQ(refused(text.substr(1)), "speedup sums: an odd number of digits");
  EXPECT_THAT(refused(text.substr(2)), ::testing::HasSubstr("bytes, wanted"));
  std::string bad = text;
  bad[12] = 'x';
  EXPECT_EQ(refused(bad), "speedup sums: not hexadecimal at 12");
  bad = text;
  bad.replace(64, 16, "000000000000f87f");  // NaN
  EXPECT_EQ(refused(bad), "speedup sums: a value is negative or not finite");
}

TEST(Speedup, LastMinuteFollowsWhatChanged) {
  Server server(8);
  SpeedupEstimator estimator;
  const int gsm = estimator.label("domain:math"), code = estimator.label("domain:code");
  EXPECT_EQ(estimator.label("domain:math"), gsm);
  double now = 0;
  const auto run = [&](double seconds, double factor, int label) {
    server.drafted_factor = factor;
    for (const double end = now + seconds; now < end; now += 0.01) {
      estimator.record(server.round(1), now, std::span(&label, 1));
    }
  };
  run(200, 1.9, gsm);
  const double slow = server.truth(1);
  EXPECT_NEAR(estimator.last_minute(now)->value, slow, 0.12);
  run(70, 1.2, code);
  const double fast = server.truth(1);
  EXPECT_NEAR(estimator.last_minute(now)->value, fast, 0.2);
  EXPECT_LT(estimator.overall()->value, fast - 0.15);
  EXPECT_NEAR(estimator.by_label("domain:math")->value, slow, 0.1);
  EXPECT_NEAR(estimator.by_label("domain:code")->value, fast, 0.2);
  EXPECT_FALSE(estimator.by_label("domain:none"));
}

TEST(Speedup, NonsenseIsIgnored) {
  SpeedupSums sums;
  sums.record(
      {.sequences = 1, .tokens = 1, .ms = std::nan(""), .control = true, .probability = 0.5});
  sums.record({.sequences = 1, .tokens = 1, .ms = -3, .control = true, .probability = 0.5});
  sums.record({.sequences = 0, .tokens = 1, .ms = 3, .control = true, .probability = 0.5});
  sums.record({.sequences = 1, .tokens = 1, .ms = 3, .control = true, .probability = 0});
  EXPECT_EQ(sums.rounds(), 0);
}

}  // namespace
}  // namespace foretoken
