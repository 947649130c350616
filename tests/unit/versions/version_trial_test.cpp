// What paired requests say of two versions, and how soon.
#include "runtime/versions/version_trial.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace foretoken {
namespace {

using ::testing::HasSubstr;

constexpr SpeculatorVersion kCanary{2}, kServed{1};

class Trials {
 public:
  // A request replayed with both, the canary's at `cost` of the other's; and, drafted by one of
  // them live, at `live` of what the served one takes.
  void request(double cost, double live) {
    std::normal_distribution<double> noise(1, .1);
    const double length = 50 * noise(random_);
    trial.add_replayed({length * cost * noise(random_), length * noise(random_)});
    const bool by_canary = ++requests_ % 4 == 0;
    trial.add_live(trace(by_canary ? kCanary : kServed, by_canary ? live : 1), kCanary, kServed);
  }
  static RequestTrace trace(SpeculatorVersion version, double rounds) {
    RequestTrace t;
    t.rounds.resize(static_cast<std::size_t>(40 * rounds));
    for (RoundTrace& round : t.rounds) round.version = version;
    t.rounds.front().accepted = 100 - static_cast<int>(t.rounds.size());  // 100 tokens
    return t;
  }
  // How many requests it took; the verdict is in `verdict`.
  int run(double cost, double live) {
    int n = 0;
    while (n < 2000 && !verdict) {
      request(cost, live);
      ++n;
      verdict = trial.verdict(rules);
    }
    return n;
  }

  TrialRules rules;
  VersionTrial trial;
  std::optional<TrialVerdict> verdict;

 private:
  std::mt19937_64 random_{11};
  int requests_ = 0;
};

TEST(VersionTrial, AFasterOneIsPromotedASlowerOneRolledBack) {
  Trials good, bad;
  EXPECT_LE(good.run(.8, .8), 60);
  EXPECT_TRUE(good.verdict->promoted) << good.verdict->reason;
  EXPECT_THAT(good.verdict->reason, HasSubstr("predicted speed"));
  EXPECT_LE(bad.run(1.2, 1.2), 60);
  EXPECT_FALSE(bad.verdict->promoted);
  EXPECT_THAT(bad.verdict->reason, HasSubstr("slower"));
}

TEST(VersionTrial, NothingIsSaidOfFewRequests) {
  Trials trials;
  for (int i = 0; i < kLeastRequests - 1; ++i) {
    trials.request(.5, .5);
    EXPECT_FALSE(trials.trial.verdict(trials.rules));
  }
}

// Good by replay, bad as it ran: reality counts.
TEST(VersionTrial, WhatItsOwnRequestsCostIsAsked) {
  Trials trials;
  trials.run(.99, 1.5);
  EXPECT_FALSE(trials.verdict->promoted);
  EXPECT_THAT(trials.verdict->reason, HasSubstr("its requests took more rounds"));
}

TEST(VersionTrial, RequestsOfNoArmSayNothing) {
  VersionTrial trial;
  RequestTrace both = Trials::trace(kCanary, 1);
  both.rounds.front().version = kServed;  // a swap fell into it
  RequestTrace control = Trials::trace(kCanary, 1);
  for (RoundTrace& round : control.rounds) round.control = true;
  for (const RequestTrace& t : {both, control, Trials::trace({7}, 1)})
    trial.add_live(t, kCanary, kServed);
  trial.add_live(Trials::trace(kServed, 1), kCanary, kServed);
  EXPECT_EQ(trial.live().requests, 0);
  trial.add_live(Trials::trace(kCanary, 1), kCanary, kServed);
  EXPECT_EQ(trial.live().requests, 1);
}

TEST(VersionWatch, SeesALossAndForgetsAnOldGain) {
  const TrialRules rules;
  std::mt19937_64 random(5);
  std::normal_distribution<double> noise(1, .1);
  VersionWatch watch;
  for (int i = 0; i < 20 * rules.watch_epoch; ++i) {
    watch.add({.9 * noise(random), noise(random)});
    ASSERT_FALSE(watch.slower(rules));
  }
  int needed = 0;
  do {
    watch.add({1.2 * noise(random), noise(random)});
    ++needed;
  } while (!watch.slower(rules) && needed < 1000);
  EXPECT_LE(needed, rules.watch_epoch + 60);
}

}  // namespace
}  // namespace foretoken
