// The gate's statistics over whole trials: what is promoted, how soon, and how often wrongly.
#include "runtime/evaluate/sequential_test.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

namespace foretoken {
namespace {

using ::testing::HasSubstr;

// Requests as a server sees them: lengths over more than a decade, some easy and some hard, the
// candidate's gain differing from request to request, and the chance of either walk on top (a
// round's emitted tokens deviate by 0.6 of their mean; the two walks are drawn independently, which
// is noisier than real pairs).
class Traffic {
 public:
  explicit Traffic(std::uint64_t seed) : random_(seed) {}
  // Rounds of one request, candidate and served, whose expected costs differ by the true gain.
  std::pair<double, double> request(double gain) {
    const double tokens = std::clamp(std::exp(4.5 + 0.8 * normal_(random_)), 8.0, 600.0);
    const double served_length = 1.3 + 1.6 * uniform_(random_);
    const double own_gain = (1 + gain) * std::exp(0.05 * normal_(random_) - 0.00125);
    return {rounds(tokens, served_length * own_gain), rounds(tokens, served_length)};
  }
  double uniform() { return uniform_(random_); }

 private:
  double rounds(double tokens, double length) {
    const double mean = tokens / length;
    return std::max(1.0, mean + 0.6 * std::sqrt(mean) * normal_(random_));
  }
  std::mt19937_64 random_;
  std::normal_distribution<double> normal_;
  std::uniform_real_distribution<double> uniform_;
};

struct Trial {
  Verdict verdict;
  std::int64_t requests;
};

// Two domains, the second with `share` of the traffic.
Trial run(std::uint64_t seed, double gain, double second_gain, double share,
          const SequentialOptions& options) {
  Traffic traffic(seed);
  SequentialTest test(options);
  test.expect("first");
  if (share > 0) test.expect("second");
  for (;;) {
    const bool second = traffic.uniform() < share;
    const auto [candidate, served] = traffic.request(second ? second_gain : gain);
    test.add(second ? "second" : "first", candidate, served);
    const SequentialFigures figures = test.judge();
    if (figures.verdict != Verdict::kUndecided) return {figures.verdict, test.requests()};
  }
}

struct Tally {
  int promoted = 0, within = 0;
  std::int64_t requests = 0;
};
Tally tally(int trials, double gain, double second_gain, double share, std::int64_t limit,
            const SequentialOptions& options = {}) {
  Tally tally;
  for (int i = 0; i < trials; ++i) {
    const Trial trial = run(std::uint64_t(i) * 7919 + 1, gain, second_gain, share, options);
    tally.promoted += trial.verdict == Verdict::kPromoted;
    tally.within += trial.verdict == Verdict::kPromoted && trial.requests <= limit;
    tally.requests += trial.requests;
  }
  return tally;
}

TEST(SequentialTest, PromotesTenPercentWithin150Requests) {
  EXPECT_GE(tally(1000, 0.10, 0.10, 0.5, 150).within, 950);
  EXPECT_GE(tally(1000, 0.10, 0.10, 0.0, 150).within, 950);
}

TEST(SequentialTest, PromotesThreePercentWithin1000Requests) {
  EXPECT_GE(tally(1000, 0.03, 0.03, 0.5, 1000).within, 950);
  EXPECT_GE(tally(1000, 0.03, 0.03, 0.25, 1000).within, 950);
}

// Whatever it gains elsewhere, and however small the share of the domain it harms.
TEST(SequentialTest, NeverGivesUpADomain) {
  for (const double gain : {0.10, 0.30}) {
    for (const double share : {0.5, 0.3, 0.15}) {
      EXPECT_EQ(tally(1000, gain, -0.05, share, 1000).promoted, 0) << gain << " " << share;
    }
  }
}

TEST(SequentialTest, NeverPromotesWhatIsWorseOverall) {
  EXPECT_EQ(tally(1000, -0.05, -0.05, 0.5, 1000).promoted, 0);
}

// The error is what it says, at the boundary, over all looks: 5 % is spent by these 1,000 trials of
// 1,000 looks each. (P(more than 67 | 0.05) < 0.01.) And the bound is no wider than it must be: a
// test of one fixed n would err in 5 %, so some of it must be used.
TEST(SequentialTest, SpendsTheErrorItIsGiven) {
  SequentialOptions options;
  options.alpha = 0.05;
  options.domain_margin = 1;  // out of the way
  options.futility_alpha = 1e-9;
  const int promoted = tally(1000, 0, 0, 0.5, 1000, options).promoted;
  EXPECT_LE(promoted, 67);
  EXPECT_GE(promoted, 5);
}

// Looked at after every request, an ordinary interval errs several times as often: the reason for
// all this, and proof that the trials can show it.
TEST(SequentialTest, AnOrdinaryIntervalWouldErr) {
  int wrong = 0;
  for (int i = 0; i < 300; ++i) {
    Traffic traffic(std::uint64_t(i) + 1);
    PairedSums sums;
    bool ever = false;
    for (int n = 1; n <= 1000; ++n) {
      const auto [candidate, served] = traffic.request(0);
      sums.add(candidate, served);
      ever |= n >= kLeastRequests && sums.gain() > 1.645 * sums.deviation() / std::sqrt(n);
    }
    wrong += ever;
  }
  EXPECT_GE(wrong, 60);
}

TEST(SequentialTest, GivesUpWhatCannotBeShown) {
  const Tally same = tally(300, 0, 0, 0.5, 1000);
  EXPECT_LE(same.promoted, 6);
  EXPECT_LT(double(same.requests) / 300, 700);
  const Tally worse = tally(300, -0.2, -0.2, 0.5, 1000);
  EXPECT_LT(double(worse.requests) / 300, 80);
  SequentialOptions options;
  options.most_requests = 100;
  Traffic traffic(3);
  SequentialTest test(options);
  for (int i = 0; i < 100; ++i) {
    const auto [candidate, served] = traffic.request(i % 2 ? 0.12 : -0.05);
    test.add("only", candidate, served);
  }
  EXPECT_NE(test.judge().verdict, Verdict::kUndecided);
  EXPECT_NE(test.judge().verdict, Verdict::kPromoted);
}

TEST(SequentialTest, WaitsForADomainThatMayMatter) {
  SequentialTest test({});
  Traffic traffic(5);
  for (int i = 0; i < 60; ++i) {
    const auto [candidate, served] = traffic.request(0.4);
    test.add(i % 4 == 0 ? "quarter" : "rest", candidate, served);
  }
  EXPECT_EQ(test.judge().verdict, Verdict::kUndecided);
  EXPECT_THAT(test.judge().because, HasSubstr("too few requests of quarter"));
  // One stray request in as many is pooled and stops nothing.
  SequentialTest stray({});
  for (int i = 0; i < 110; ++i) {
    const auto [candidate, served] = traffic.request(0.4);
    stray.add(i == 10 ? "stray" : "rest", candidate, served);
  }
  EXPECT_EQ(stray.judge().verdict, Verdict::kPromoted) << stray.judge().because;
  ASSERT_EQ(stray.judge().domains.size(), 2u);
  EXPECT_EQ(stray.judge().domains[1].domain, "(others)");
}

TEST(SequentialTest, WaitsForADomainThatRecentTrafficHad) {
  Traffic traffic(9);
  SequentialTest test({});
  test.expect("seen before");
  for (int i = 0; i < 65; ++i) {
    const auto [candidate, served] = traffic.request(0.4);
    test.add("here", candidate, served);
    EXPECT_EQ(test.judge().verdict, Verdict::kUndecided) << i;
  }
  for (int i = 0; i < 10; ++i) test.add("here", 10, 14);
  EXPECT_EQ(test.judge().verdict, Verdict::kPromoted);  // by now it is shown to be rare
}

TEST(SequentialTest, ManySmallDomainsAreJudgedTogether) {
  SequentialTest test({});
  Traffic traffic(6);
  for (int i = 0; i < 150; ++i) {
    const auto [candidate, served] = traffic.request(0.15);
    test.add("key " + std::to_string(i % 40), candidate, served);
  }
  const SequentialFigures figures = test.judge();
  EXPECT_EQ(figures.verdict, Verdict::kPromoted) << figures.because;
  ASSERT_EQ(figures.domains.size(), 1u);
  EXPECT_EQ(figures.domains[0].requests, 150);
}

TEST(SequentialTest, BoundsWhatClientsCanMakeItHold) {
  SequentialTest test({});
  for (int i = 0; i < 1000; ++i) test.add("domain " + std::to_string(i), 1.0, 1.1);
  EXPECT_LE(test.domains().size(), SequentialTest::kMostDomains + 1);
  EXPECT_EQ(test.requests(), 1000);
  test.add("domain 1", 0, 1);
  test.add("domain 1", 1, -1);
  test.add("domain 1", INFINITY, 1);
  test.add("domain 1", NAN, 1);
  EXPECT_EQ(test.requests(), 1000);
}

TEST(SequentialTest, GoesOnFromSavedState) {
  SequentialTest first({}), second({});
  Traffic traffic(8);
  for (int i = 0; i < 90; ++i) {
    const auto [candidate, served] = traffic.request(0.1);
    if (i == 40) second.restore(first.domains());
    first.add(i % 2 ? "a" : "b", candidate, served);
    if (i >= 40) second.add(i % 2 ? "a" : "b", candidate, served);
  }
  EXPECT_EQ(first.domains(), second.domains());
  EXPECT_EQ(first.judge().all.low, second.judge().all.low);
}

TEST(PairedSums, GainIsTheRatioOfSumsAndItsDeviationOfResiduals) {
  PairedSums sums;
  sums.add(10, 11);
  sums.add(20, 24);
  sums.add(30, 31);
  EXPECT_NEAR(sums.gain(), 66.0 / 60 - 1, 1e-12);
  // Residuals 0, 2, -2 against a mean cost of 20.
  EXPECT_NEAR(sums.deviation(), std::sqrt(8.0 / 2) / 20, 1e-12);
}

TEST(AlphaOfCandidate, SumsToTheDaysErrors) {
  double sum = 0;
  for (int k = 1; k <= 100000; ++k) sum += alpha_of_candidate(k);
  EXPECT_LE(sum, kErrorsPerDay);
  EXPECT_GT(sum, 0.99 * kErrorsPerDay);
}

}  // namespace
}  // namespace foretoken
