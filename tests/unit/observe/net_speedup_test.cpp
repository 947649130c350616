// The net speedup's windows: the estimate is the ratio at equal concurrency, its interval covers,
// and confounding by concurrency does not fool it.
#include "runtime/observe/net_speedup.h"

#include <gtest/gtest.h>

#include <random>

namespace foretoken {
namespace {

struct Simulated {
  double speedup = 1.5;      // of everything over plain, at every concurrency
  double window_noise = .1;  // the machine's speed differs from window to window
  bool busier_when_plain = false;
  double hours = 1;
};

NetSpeedup simulate(const Simulated& s, std::uint64_t seed, double fraction = .1) {
  NetSpeedupWindows windows({fraction, 5, 1, seed});
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  double now = 0, speed = 1, changes = 0;
  while (now < s.hours * 3600) {
    if (now >= changes) {
      speed = std::exp(s.window_noise * normal(random));
      changes = now + 7;
    }
    const bool plain = windows.plain(now);
    int sequences = 1 + static_cast<int>(random() % 3);
    if (s.busier_when_plain && plain) sequences = 3;
    // A round of more sequences takes longer; with everything on it emits more tokens for its time.
    const double per_token = (10.0 + 2 * sequences) / sequences / speed / (plain ? 1 : s.speedup);
    const std::int64_t tokens = sequences * 10;
    const double ms = per_token * double(tokens) * std::exp(.1 * normal(random));
    now += ms / 1000;
    windows.record(now, sequences, tokens, ms);
  }
  return windows.estimate();
}

TEST(NetSpeedup, CoversTheTruth) {
  int covered = 0;
  double sum = 0;
  constexpr int kRuns = 200;
  for (int i = 0; i < kRuns; ++i) {
    const NetSpeedup net = simulate({.hours = .5}, 1000 + std::uint64_t(i));
    ASSERT_TRUE(net.value);
    covered += net.value->low <= 1.5 && 1.5 <= net.value->high;
    sum += net.value->value;
    EXPECT_GE(net.plain_windows, NetSpeedupWindows::kLeastWindows);
  }
  // 95 % of 200: within four standard deviations.
  EXPECT_GE(covered, 178);
  EXPECT_NEAR(sum / kRuns, 1.5, .02);
}

TEST(NetSpeedup, ALossIsALoss) {
  const NetSpeedup net = simulate({.speedup = .9}, 3);
  ASSERT_TRUE(net.value);
  EXPECT_LT(net.value->high, 1);
}

TEST(NetSpeedup, ConcurrencyIsHeldEqual) {
  // Three sequences take 5.3 ms a token and one takes 12: plain windows that happen to be busier
  // must not look fast.
  const NetSpeedup net = simulate({.speedup = 1, .busier_when_plain = true}, 5);
  ASSERT_TRUE(net.value);
  EXPECT_NEAR(net.value->value, 1, .06);
}

TEST(NetSpeedup, TheFractionOfTimeIsWhatWasAskedFor) {
  const NetSpeedup net = simulate({.hours = 2}, 9, .06);
  EXPECT_NEAR(double(net.plain_windows) / double(net.windows), .06, .025);
}

TEST(NetSpeedup, NothingIsPlainWhereItIsOff) {
  const NetSpeedup net = simulate({}, 7, 0);
  EXPECT_EQ(net.plain_windows, 0);
  EXPECT_FALSE(net.value);
}

TEST(NetSpeedup, TheStartOfAWindowIsNotCounted) {
  NetSpeedupWindows windows({1.0, 5, 1, 1});
  EXPECT_FALSE(windows.plain(100));  // the first has everything on
  windows.record(100.5, 1, 10, 100);
  windows.record(102, 1, 10, 100);
  EXPECT_TRUE(windows.plain(105.1));
  windows.record(105.9, 1, 10, 1e9);  // the trainer's last step, say
  windows.plain(110.3);
  EXPECT_EQ(windows.estimate().windows, 1);  // the second counted nothing
}

}  // namespace
}  // namespace foretoken
