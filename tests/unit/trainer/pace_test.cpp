// Manners beside a server: shares follow what it says, and what it no longer says is forgotten.
#include "trainer/ingest/pace.h"

#include <gtest/gtest.h>

#include <limits>

namespace foretoken::trainer {
namespace {

using namespace std::chrono_literals;

ServerHello hello(float busy) {
  ServerHello h;
  h.busy = busy;
  return h;
}

TEST(Pace, TakesTheGapsTheServerLeaves) {
  Pace pace(1);
  EXPECT_EQ(pace.share(0s), 1);
  EXPECT_EQ(pace.rest_after(40ms, 0ms, 0s), 0ns);
  pace.heard(hello(0.5f), 1s);
  EXPECT_DOUBLE_EQ(pace.share(1s), 0.5);
  EXPECT_EQ(pace.rest_after(40ms, 0ms, 1s), 40ms);
  pace.heard(hello(1.0f), 2s);
  EXPECT_DOUBLE_EQ(pace.share(2s), Pace::kLeast);
  EXPECT_NEAR(double(pace.rest_after(40ms, 0ms, 2s).count()), 360e6, 1e3);
  // One quiet second after a full one is not an idle server yet; two are.
  pace.heard(hello(0), 3s);
  EXPECT_DOUBLE_EQ(pace.share(3s), Pace::kLeast);
  pace.heard(hello(0), 4s);
  EXPECT_DOUBLE_EQ(pace.share(4s), 1);
}

TEST(Pace, AServerThatIsGoneHoldsNothingUp) {
  Pace pace(0.8);
  pace.heard(hello(1), 1s);
  EXPECT_DOUBLE_EQ(pace.share(6s), Pace::kLeast);
  EXPECT_DOUBLE_EQ(pace.share(7s), 0.8);
}

// It began in a gap and a request came: the slice itself noticed.
TEST(Pace, BacksOffWhenItIsKeptFromTheCore) {
  Pace pace(1);
  EXPECT_EQ(pace.rest_after(60ms, 20ms, 0s), 160ms);
  EXPECT_EQ(pace.rest_after(2s, 1s, 0s), Pace::kLongestWait);
  pace.heard(hello(0.5f), 1s);
  EXPECT_EQ(pace.rest_after(60ms, 20ms, 1s), 40ms + 160ms);
}

TEST(Pace, ABusinessThatIsNoNumberCountsAsFull) {
  Pace pace(1);
  pace.heard(hello(std::numeric_limits<float>::quiet_NaN()), 1s);
  EXPECT_DOUBLE_EQ(pace.share(1s), Pace::kLeast);
}

}  // namespace
}  // namespace foretoken::trainer
