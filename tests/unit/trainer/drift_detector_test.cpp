// Page's test on what was predicted and what came: quick where traffic changes, quiet where not.
#include "trainer/examples/drift_detector.h"

#include <gtest/gtest.h>

#include <limits>
#include <random>

namespace foretoken::trainer {
namespace {

// Requests of 128 positions, each predicted at .5 and accepted with the given probability.
struct Requests {
  std::mt19937_64 random{7};
  bool give(DriftDetector& detector, std::uint64_t domain, double probability) {
    const double accepted = std::binomial_distribution<int>(128, probability)(random);
    return detector.observe(domain, 64, accepted, 128);
  }
};

TEST(DriftDetector, IsQuietOnSteadyTrafficHoweverWrongThePredictions) {
  DriftDetector detector;
  Requests requests;
  int alarms = 0;
  for (int i = 0; i < 3000; ++i) alarms += requests.give(detector, 1, 0.4);
  EXPECT_LE(alarms, 10);
}

TEST(DriftDetector, HearsAChangeWithinADozenRequests) {
  for (const double after : {0.3, 0.7}) {
    DriftDetector detector;
    Requests requests;
    for (int i = 0; i < 40; ++i) EXPECT_FALSE(requests.give(detector, 1, 0.5));
    int waited = 1;
    while (waited < 50 && !requests.give(detector, 1, after)) ++waited;
    EXPECT_LE(waited, 12) << after;
    // What has become usual is no alarm again.
    int alarms = 0;
    for (int i = 0; i < 40; ++i) alarms += requests.give(detector, 1, after);
    EXPECT_EQ(alarms, 0);
  }
}

TEST(DriftDetector, ANewDomainIsAChangeOnceOthersAreKnown) {
  DriftDetector detector;
  Requests requests;
  EXPECT_FALSE(requests.give(detector, 1, 0.5));
  EXPECT_TRUE(requests.give(detector, 2, 0.5));
  EXPECT_FALSE(requests.give(detector, 2, 0.5));
  // Names without end share the last place, and memory stays bounded.
  for (std::uint64_t name = 3; name < 500; ++name) requests.give(detector, name, 0.5);
  EXPECT_EQ(detector.state().size(), DriftDetector::kMostDomains);
}

TEST(DriftDetector, GoesOnFromItsState) {
  DriftDetector whole, second;
  Requests a, b;
  for (int i = 0; i < 20; ++i) whole.observe(1, 60.5, 60 + i % 5, 128);
  ASSERT_TRUE(second.restore(whole.state()));
  for (int i = 0; i < 60; ++i) EXPECT_EQ(a.give(whole, 1, 0.35), b.give(second, 1, 0.35)) << i;
  auto damaged = whole.state();
  damaged[0].mean = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(second.restore(damaged));
}

}  // namespace
}  // namespace foretoken::trainer
