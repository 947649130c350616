// The life of versions as a state machine: random walks through it keep its invariants, and what
// its events fold to is the state itself, so that a restart at any event goes on from there.
#include "runtime/versions/version_life.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <set>

namespace foretoken {
namespace {

using ::testing::HasSubstr;

HeldVersion held(std::uint64_t version) {
  HeldVersion h;
  h.version = {version};
  h.kind = "fusion";
  return h;
}

class Walk {
 public:
  explicit Walk(std::uint64_t seed) : random_(seed) {}

  void step() {
    const bool on_trial = life_.canary().has_value();
    switch (random_() % 9) {
      case 0:
      case 1:
      case 2: {  // a new number mostly, an old one at times
        const std::uint64_t v = random_() % 4 ? ++newest_ : random_() % (newest_ + 1);
        const auto served = life_.served().version;
        const VersionLife::Offer offer = life_.offered({v});
        if (offer.wanted) {
          EXPECT_TRUE(taken_.insert(v).second || life_.known().lost.contains(v)) << v << " twice";
          EXPECT_FALSE(ended_.contains(v)) << v;
          EXPECT_FALSE(life_.known().frozen);
          take(random_() % 5 ? life_.received(held(v)) : life_.refused(held(v), "shape: none"));
          if (life_.known().banned.contains(v)) ended_.insert(v);
        } else if (offer.answer) {
          EXPECT_TRUE(v == served.value || v <= life_.newest_tried().value);
        }
        break;
      }
      case 3:
      case 4:
        take(life_.begin(0.25));
        break;
      case 5:
        if (on_trial) take(life_.promote("good", {}, .05));
        break;
      case 6:
        if (on_trial) {
          ended_.insert(life_.canary()->version.value);
          take(life_.roll_back_canary("bad", {}, .05));
        }
        break;
      case 7:
        if (life_.served().version.value > 0 && !on_trial) {
          ended_.insert(life_.served().version.value);
          take(life_.roll_back_served("worse", {}, .05));
          EXPECT_FALSE(life_.previous().has_value());
        }
        break;
      default:
        take(life_.known().frozen ? life_.unfreeze() : life_.freeze());
    }
    check();
  }
  std::size_t events() const { return n_events_; }
  std::int64_t promotions() const { return life_.promotions(); }

 private:
  void take(const LineageEvents& events) {
    for (const LineageEvent& e : events) {
      EXPECT_FALSE(e.event.empty());
      folded_.apply(e);
      ++n_events_;
    }
  }
  void check() {
    const LineageState& known = life_.known();
    EXPECT_FALSE(life_.canary() && known.frozen);
    for (const std::uint64_t v : ended_) {
      EXPECT_NE(life_.served().version.value, v);
      EXPECT_FALSE(life_.canary() && life_.canary()->version.value == v);
      EXPECT_FALSE(life_.waiting() && life_.waiting()->version.value == v);
      EXPECT_TRUE(known.banned.contains(v));
    }
    if (life_.canary() && life_.waiting()) {
      EXPECT_LT(life_.canary()->version, life_.waiting()->version);
    }
    // What a restart would read.
    EXPECT_EQ(folded_.served, life_.served().version);
    EXPECT_EQ(folded_.frozen, known.frozen);
    EXPECT_EQ(folded_.banned, known.banned);
    EXPECT_EQ(folded_.proven, known.proven);
    EXPECT_EQ(folded_.highest, known.highest);
    // On trial or waiting: either way it goes on trial again.
    for (const auto* mine : {&life_.canary(), &life_.waiting()}) {
      if (*mine) {
        EXPECT_TRUE(folded_.canary == (*mine)->version || folded_.waiting == (*mine)->version);
      }
    }
    if (folded_.served.value > 0) {
      EXPECT_TRUE(std::ranges::find(folded_.proven, folded_.served) != folded_.proven.end());
    }
  }

  std::mt19937_64 random_;
  VersionLife life_{HeldVersion{}, LineageState{}};
  LineageState folded_;
  std::uint64_t newest_ = 0;
  std::set<std::uint64_t> taken_, ended_;
  std::size_t n_events_ = 0;
};

TEST(VersionLife, RandomWalksKeepTheInvariants) {
  std::size_t events = 0;
  std::int64_t promotions = 0;
  for (std::uint64_t seed = 1; seed <= 500 && !::testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    Walk walk(seed);
    for (int i = 0; i < 200 && !::testing::Test::HasFailure(); ++i) walk.step();
    events += walk.events();
    promotions += walk.promotions();
  }
  EXPECT_GT(events, 20000u);  // the walks got about
  EXPECT_GT(promotions, 1000);
}

// Only one canary, the newest waits; frozen, the canary is put back, and what was refused for that
// alone may be offered again.
TEST(VersionLife, TheNewestWaitsAndAFreezePutsTheCanaryBack) {
  VersionLife life(HeldVersion{}, LineageState{});
  for (std::uint64_t v = 1; v <= 3; ++v) {
    EXPECT_TRUE(life.offered({v}).wanted);
    life.received(held(v));
    life.begin(0.25);
  }
  EXPECT_EQ(life.canary()->version.value, 1u);
  EXPECT_EQ(life.waiting()->version.value, 3u);
  life.roll_back_canary("bad", {}, .05);
  EXPECT_THAT(life.offered({1}).answer.error().message, HasSubstr("never taken again"));
  life.begin(0.25);
  const LineageEvents frozen = life.freeze();
  ASSERT_EQ(frozen.size(), 1u);
  EXPECT_EQ(life.waiting()->version.value, 3u);
  EXPECT_TRUE(life.begin(0.25).empty());
  const VersionLife::Offer offer = life.offered({4});
  EXPECT_FALSE(offer.wanted);
  EXPECT_THAT(offer.answer.error().message, HasSubstr("frozen"));
  EXPECT_EQ(life.refused().value, 4u);
  life.unfreeze();
  EXPECT_EQ(life.refused().value, 0u);
  EXPECT_TRUE(life.offered({4}).wanted);
}

}  // namespace
}  // namespace foretoken
