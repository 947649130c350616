// The life of a version on the server: what is promoted, what is rolled back and how soon, what a
// restart serves, and that nothing unproven ever serves more than a canary's share.
#include "runtime/versions/version_keeper.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <random>

#include "foretoken/protocol/transport.h"
#include "runtime/speculate/fusion_bundle.h"
#include "runtime/speculate/learned.h"
#include "tests/support/test_keys.h"
#include "tests/unit/protocol/sample_trace.h"

namespace foretoken {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
namespace fs = std::filesystem;
using std::chrono_literals::operator""s;

class KeeperTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / ("foretoken-keeper-" + std::to_string(::getpid()));
    fs::remove_all(root_);
    start();
  }
  void TearDown() override { fs::remove_all(root_); }

  // A (re)start of the server.
  void start() {
    keeper_.reset();
    auto state = StateDir::open(root_, sample_fingerprint());
    ASSERT_TRUE(state);
    folder_ = state->folder();
    auto keeper = VersionKeeper::create(options_, initial_weights(), *state, clock_);
    ASSERT_TRUE(keeper) << keeper.error().message;
    keeper_ = std::move(*keeper);
    published_.clear();
    VersionKeeperHooks hooks;
    hooks.parse = [this](std::span<const std::byte> bytes) {
      return parse_bundle(bytes, {key_.public_key()});
    };
    hooks.prepare = [](const Bundle& bundle) { return learned_from_bundle(bundle, nullptr); };
    hooks.replay = [this](const RequestTrace&, const LearnedPointer& candidate,
                          const LearnedPointer& served) -> std::optional<PairedCosts> {
      std::normal_distribution<double> noise(1, .1);
      const double request = 50 * noise(random_);
      return PairedCosts{request * rounds_of_.at(candidate->version.value) * noise(random_),
                         request * rounds_of_.at(served->version.value) * noise(random_)};
    };
    hooks.publish = [this](const SpeculatorChoice& choice) {
      const std::uint64_t c = choice.canary ? choice.canary->version.value : 0;
      EXPECT_EQ(choice.canary != nullptr, choice.canary_fraction > 0);
      published_.emplace_back(choice.served->version.value, c);
    };
    keeper_->restore(std::move(hooks));
  }

  Bundle bundle(std::uint64_t version, std::uint64_t parent = 0) {
    FusionTable table = FusionTable::initial();
    table.bias[3] += .001f * static_cast<float>(version);
    Bundle b = bundle_of(table);
    b.version = {version};
    b.parent = {parent};
    b.model_fingerprint = sample_fingerprint();
    b.verdict = "promoted: test";
    b.trained_requests = 100;
    return b;
  }
  // rounds: the decode rounds a request takes with it, against 1 for the shipped one.
  Status offer(std::uint64_t version, double rounds) {
    rounds_of_[version] = rounds;
    const Bundle b = bundle(version, keeper_->served().value);
    return keeper_->offer(b, serialize(b, key_));
  }
  // Requests finish: a quarter of them drafted by the canary. live: rounds a token of the canary's.
  void requests(int n, double live = 0) {
    for (int i = 0; i < n; ++i) {
      auto trace = std::make_unique<RequestTrace>(sample_trace(++request_, 40));
      const SpeculatorState state = keeper_->state();
      const bool canary = state.canary && request_ % 4 == 0;
      const SpeculatorVersion v = canary ? state.canary->version : state.served;
      trace->rounds.clear();
      const double cost = live > 0 && canary ? live : rounds_of_.at(v.value);
      const int rounds = static_cast<int>(std::lround(20 * cost)) + static_cast<int>(request_ % 3);
      for (int r = 0; r < rounds; ++r) {
        trace->rounds.emplace_back().version = v;
      }
      trace->rounds.front().accepted = std::max(0, 60 - rounds);  // 60 tokens, whoever drafted
      keeper_->observe(std::move(trace));
      while (keeper_->judge()) {
      }
      clock_.advance(1s);
    }
  }
  std::vector<std::string> events() {
    std::vector<std::string> out;
    for (const auto& e : keeper_->state().lineage)
      out.push_back(std::to_string(e.at("version").to_number<std::uint64_t>()) + " " +
                    std::string(e.at("event").as_string()));
    return out;
  }
  void promote(std::uint64_t version, double rounds = .8) {
    ASSERT_TRUE(offer(version, rounds));
    requests(60);
    ASSERT_EQ(keeper_->served().value, version);
  }

  VersionKeeperOptions options_;
  SigningKey key_ = test_signing_key();
  ManualClock clock_;
  fs::path root_, folder_;
  std::mt19937_64 random_{7};
  std::map<std::uint64_t, double> rounds_of_{{0, 1.0}};
  std::uint64_t request_ = 0;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> published_;
  std::unique_ptr<VersionKeeper> keeper_;
};

// What an operator names serves at once, under a number of its own, and stays what it is as long as
// its digest does.
TEST_F(KeeperTest, WhatTheOperatorGivesServesFromTheFirstRound) {
  promote(1);
  const auto give = [&](const std::string& digest) {
    options_.given.emplace();
    options_.given->kind = "eagle3";
    options_.given->digest = digest;
    options_.given->source = "heads/" + digest;
    options_.given->make = [](SpeculatorVersion version) {
      auto weights = std::make_shared<LearnedWeights>();
      weights->version = version;
      return LearnedPointer(std::move(weights));
    };
    start();
  };
  rounds_of_[2] = rounds_of_[4] = .7;
  give("aa");
  EXPECT_EQ(keeper_->served().value, 2u);
  EXPECT_THAT(published_, ElementsAre(std::pair(2, 0)));
  const auto event = keeper_->state().lineage.back();
  EXPECT_EQ(event.at("event").as_string(), "given");
  EXPECT_EQ(event.at("kind").as_string(), "eagle3");
  EXPECT_EQ(event.at("reason").as_string(), "heads/aa");
  // Again with the same: nothing new. What is proven over it serves on.
  start();
  EXPECT_EQ(keeper_->served().value, 2u);
  promote(3, .5);
  start();
  EXPECT_EQ(keeper_->served().value, 3u);
  EXPECT_EQ(keeper_->highest().value, 3u);
  // An operator may go back to it, and to what was before it.
  ASSERT_TRUE(keeper_->rollback("test"));
  EXPECT_EQ(keeper_->served().value, 2u);
  start();
  EXPECT_EQ(keeper_->served().value, 2u);
  // Another one is another version; without any, the last proven one of the folder serves.
  give("bb");
  EXPECT_EQ(keeper_->served().value, 4u);
  options_.given.reset();
  start();
  EXPECT_EQ(keeper_->served().value, 1u);
}

TEST_F(KeeperTest, AGivenVersionThatDoesWorseIsRolledBackForGood) {
  promote(1);
  options_.given.emplace();
  options_.given->kind = "eagle3";
  options_.given->digest = "cc";
  options_.given->make = [](SpeculatorVersion version) {
    auto weights = std::make_shared<LearnedWeights>();
    weights->version = version;
    return LearnedPointer(std::move(weights));
  };
  rounds_of_[2] = 1.5;
  start();
  ASSERT_EQ(keeper_->served().value, 2u);
  requests(600);
  EXPECT_EQ(keeper_->served().value, 1u);
  EXPECT_THAT(events(), ::testing::Contains("2 rolled_back"));
  start();
  EXPECT_EQ(keeper_->served().value, 1u);
}

TEST_F(KeeperTest, AGoodVersionIsACanaryFirstAndThenServes) {
  EXPECT_THAT(published_, ElementsAre(std::pair(0, 0)));
  ASSERT_TRUE(offer(1, .8));
  EXPECT_EQ(keeper_->served().value, 0u);
  EXPECT_EQ(keeper_->canary().value, 1u);
  requests(kLeastRequests - 1);
  EXPECT_EQ(keeper_->served().value, 0u);  // whatever the figures say
  requests(31);
  EXPECT_EQ(keeper_->served().value, 1u);
  EXPECT_THAT(published_, ElementsAre(std::pair(0, 0), std::pair(0, 1), std::pair(1, 0)));
  EXPECT_THAT(events(), ElementsAre("1 received", "1 canary", "1 promoted"));
  const auto promoted = keeper_->state().lineage.back();
  EXPECT_GT(promoted.at("predicted_speed_gain").to_number<double>(), .1);
  EXPECT_EQ(promoted.at("verdict").as_string(), "promoted: test");
}

TEST_F(KeeperTest, AsGoodIsGoodEnough) {
  ASSERT_TRUE(offer(1, 1));
  requests(options_.most_requests + 1);
  EXPECT_EQ(keeper_->served().value, 1u);
}

// A valid signature over bad weights: shown worse, rolled back by itself, never taken again.
TEST_F(KeeperTest, AWorseVersionIsRolledBackSoonAndForGood) {
  promote(1);
  ASSERT_TRUE(offer(2, 1.2));
  int needed = 0;
  while (keeper_->canary().value == 2 && needed < options_.most_requests) {
    requests(1);
    ++needed;
  }
  EXPECT_LE(needed, 60);
  EXPECT_EQ(keeper_->served().value, 1u);
  EXPECT_EQ(keeper_->state().rolled_back, 1);
  EXPECT_EQ(keeper_->refused().value, 2u);
  EXPECT_THAT(keeper_->refused_reason(), HasSubstr("rolled back"));
  EXPECT_EQ(published_.back(), std::pair(std::uint64_t{1}, std::uint64_t{0}));
  for (const auto& [served, canary] : published_) EXPECT_NE(served, 2u);
  const Status again = offer(2, .5);
  ASSERT_FALSE(again);
  EXPECT_THAT(again.error().message, HasSubstr("never taken again"));
  start();
  EXPECT_FALSE(offer(2, .5));
  EXPECT_EQ(keeper_->served().value, 1u);
}

TEST_F(KeeperTest, WhatShowsOnlyLiveIsRolledBackToo) {
  ASSERT_TRUE(offer(1, .99));  // by replay it is fine
  requests(400, 2);
  EXPECT_EQ(keeper_->served().value, 0u);
  EXPECT_THAT(events().back(), "1 rolled_back");
}

TEST_F(KeeperTest, AServedVersionThatDoesWorseThanItsPredecessorGoes) {
  promote(1);
  requests(100);
  EXPECT_EQ(keeper_->served().value, 1u);
  rounds_of_[1] = 1.3;  // the traffic has changed
  requests(2 * options_.watch_epoch * 8);
  EXPECT_EQ(keeper_->served().value, 0u);
  EXPECT_THAT(events(), ::testing::Contains("1 rolled_back"));
  EXPECT_EQ(keeper_->refused().value, 1u);
}

TEST_F(KeeperTest, AGoodServedVersionStays) {
  promote(1);
  requests(20 * options_.watch_epoch);
  EXPECT_EQ(keeper_->served().value, 1u);
}

TEST_F(KeeperTest, ARestartServesTheLastProvenAndTheCanaryStartsOver) {
  promote(1);
  ASSERT_TRUE(offer(2, .7));
  requests(10);
  start();
  EXPECT_THAT(published_, ElementsAre(std::pair(1, 0), std::pair(1, 2)));
  EXPECT_EQ(keeper_->state().canary->replay.requests, 0);
  requests(60);
  EXPECT_EQ(keeper_->served().value, 2u);
  start();
  EXPECT_THAT(published_, ElementsAre(std::pair(2, 0)));
  EXPECT_EQ(keeper_->state().previous->value, 1u);
}

TEST_F(KeeperTest, ADamagedBundleIsSetAsideAndItsPredecessorServes) {
  promote(1);
  promote(2, .7);
  const fs::path path = folder_ / "versions" / "00000002.bundle";
  std::fstream(path, std::ios::in | std::ios::out | std::ios::binary).seekp(200).put('\x7f');
  start();
  EXPECT_EQ(keeper_->served().value, 1u);
  EXPECT_FALSE(fs::exists(path));
  EXPECT_TRUE(fs::exists(path.string() + ".damaged"));
  start();
  EXPECT_EQ(keeper_->served().value, 1u);
  promote(2, .7);  // sent again, it has to prove itself again
}

TEST_F(KeeperTest, ASignerNoLongerTrustedServesNothing) {
  promote(1);
  key_ = test_signing_key(2);
  start();
  EXPECT_EQ(keeper_->served().value, 0u);
}

TEST_F(KeeperTest, OfSeveralTheNewestWaits) {
  ASSERT_TRUE(offer(1, .9));
  ASSERT_TRUE(offer(2, .8));
  ASSERT_TRUE(offer(3, .7));
  EXPECT_TRUE(offer(1, .9));  // again: no offence
  EXPECT_EQ(keeper_->state().waiting->value, 3u);
  start();  // a crash loses neither
  EXPECT_EQ(keeper_->state().canary->version.value, 1u);
  EXPECT_EQ(keeper_->state().waiting->value, 3u);
  requests(150);
  EXPECT_EQ(keeper_->served().value, 3u);
  EXPECT_THAT(events(),
              ElementsAre("1 received", "1 canary", "2 received", "3 received", "2 superseded",
                          "1 canary", "1 promoted", "3 canary", "3 promoted"));
  EXPECT_FALSE(offer(2, .5));  // an old version replayed
}

TEST_F(KeeperTest, OperatorsRollBackFreezeAndUnfreeze) {
  EXPECT_FALSE(keeper_->rollback("operator"));
  promote(1);
  promote(2, .7);
  ASSERT_TRUE(keeper_->rollback("operator"));
  EXPECT_EQ(keeper_->served().value, 1u);
  ASSERT_TRUE(keeper_->rollback("operator"));
  EXPECT_EQ(keeper_->served().value, 0u);
  EXPECT_FALSE(keeper_->rollback("operator"));
  EXPECT_FALSE(offer(2, .7));

  ASSERT_TRUE(offer(3, .8));
  keeper_->freeze();
  EXPECT_EQ(published_.back(), std::pair(std::uint64_t{0}, std::uint64_t{0}));
  const Status refused = offer(4, .7);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message, HasSubstr("frozen"));
  EXPECT_EQ(keeper_->refused().value, 4u);
  start();
  EXPECT_TRUE(keeper_->state().frozen);
  EXPECT_FALSE(offer(4, .7));
  requests(100);
  EXPECT_EQ(keeper_->served().value, 0u);
  keeper_->unfreeze();
  EXPECT_EQ(keeper_->refused().value, 0u);
  EXPECT_EQ(keeper_->canary().value, 3u);
  ASSERT_TRUE(offer(4, .7));
  requests(150);
  EXPECT_EQ(keeper_->served().value, 4u);
  start();
  EXPECT_FALSE(keeper_->state().frozen);
  EXPECT_EQ(keeper_->served().value, 4u);
}

TEST_F(KeeperTest, BadShapesAreRefusedByNameAndRemembered) {
  Bundle b = bundle(1);
  b.kind = "poem";
  const Status status = keeper_->offer(b, serialize(b, key_));
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message, ::testing::StartsWith("kind: "));
  EXPECT_EQ(keeper_->canary().value, 0u);
  EXPECT_FALSE(offer(1, .5));
  EXPECT_THAT(events(), ElementsAre("1 refused"));
}

TEST_F(KeeperTest, TheQueueIsBoundedAndDropsCounted) {
  ASSERT_TRUE(offer(1, .8));
  for (int i = 0; i < 200; ++i) {
    auto trace = std::make_unique<RequestTrace>(sample_trace(std::uint64_t(i) + 1, 40));
    trace->rounds.resize(3);
    keeper_->observe(std::move(trace));
  }
  EXPECT_EQ(keeper_->state().judge_dropped, 200 - std::int64_t(options_.queue_requests));
}

TEST_F(KeeperTest, ATornLineIsCutOffAndADamagedOneSkipped) {
  promote(1);
  const fs::path path = folder_ / "lineage.jsonl";
  const auto whole = fs::file_size(path);
  std::ofstream(path, std::ios::app) << R"({"event": "promoted", "version": 9, "served": 9)";
  start();
  EXPECT_EQ(keeper_->served().value, 1u);
  EXPECT_EQ(fs::file_size(path), whole);
  std::ofstream(path, std::ios::app) << "not json\n{\"version\": 3}\n";
  start();
  EXPECT_EQ(keeper_->served().value, 1u);
  promote(2, .7);
  start();
  EXPECT_EQ(keeper_->served().value, 2u);
}

// A line of a server that called the gain by another unit's name.
TEST_F(KeeperTest, AnOldLineOfTheLineageIsRead) {
  promote(1);
  std::ofstream(folder_ / "lineage.jsonl", std::ios::app)
      << R"({"time": "2026-11-01T10:00:00Z", "unix_ms": 1793527200000, "event": "rolled_back", )"
      << R"("version": 1, "parent": 0, "served": 0, "frozen": false, "judged_requests": 90, )"
      << R"("tokens_per_round_difference": -0.0625, "ci": [-0.09, -0.03]})"
      << "\n";
  start();
  EXPECT_EQ(keeper_->served().value, 0u);
  const auto line = keeper_->state().lineage.back().get_object();
  EXPECT_EQ(line.at("event"), "rolled_back");
  EXPECT_EQ(line.at("judged_requests"), 90);
  EXPECT_EQ(line.at("predicted_speed_gain"), -0.0625);
  EXPECT_EQ(line.at("ci").at(1), -0.03);
}

// Killed between two lines of the lineage: whatever the last one was, no version is lost.
TEST_F(KeeperTest, NoLineIsTheLastOneThatMatters) {
  promote(1);
  ASSERT_TRUE(offer(2, .7));
  requests(60);
  ASSERT_EQ(keeper_->served().value, 2u);
  ASSERT_TRUE(offer(3, .6));
  const fs::path path = folder_ / "lineage.jsonl";
  std::vector<std::string> lines;
  {
    std::ifstream in(path);
    for (std::string line; std::getline(in, line);) lines.push_back(line);
  }
  ASSERT_EQ(lines.size(), 8u);
  for (std::size_t n = 0; n <= lines.size(); ++n) {
    std::ofstream out(path, std::ios::trunc);
    for (std::size_t i = 0; i < n; ++i) out << lines[i] << "\n";
    out.close();
    start();
    SCOPED_TRACE(n > 0 ? lines[n - 1] : "nothing");
    EXPECT_EQ(keeper_->served().value, n >= 6 ? 2u : n >= 3 ? 1u : 0u);
    const std::uint64_t on_trial = n == 0 || n == 3 || n == 6 ? 0 : n < 3 ? 1 : n < 6 ? 2 : 3;
    EXPECT_EQ(keeper_->canary().value, on_trial);
  }
}

// Random lives: whatever is offered, asked and crashed in whatever order, only proven versions
// serve, no version serves after it was banned, and a restart changes nothing but the canary.
TEST_F(KeeperTest, RandomLives) {
  std::mt19937_64 random(11);
  std::uint64_t next = 1;
  std::set<std::uint64_t> banned;
  for (int step = 0; step < 400; ++step) {
    switch (random() % 8) {
      case 0:
        (void)offer(next++, .6 + .1 * static_cast<double>(random() % 8));
        break;
      case 1:
        (void)offer(1 + random() % next, .5);
        break;
      case 2: {
        const SpeculatorState before = keeper_->state();
        start();
        const SpeculatorState after = keeper_->state();
        EXPECT_EQ(before.served, after.served);
        EXPECT_EQ(before.frozen, after.frozen);
        EXPECT_EQ(before.banned, after.banned);
        EXPECT_EQ(before.proven, after.proven);
        EXPECT_EQ(before.canary.has_value(), after.canary.has_value());
        EXPECT_EQ(before.waiting, after.waiting);
        break;
      }
      case 3:
        if (random() % 4 == 0) (void)keeper_->rollback("operator");
        break;
      case 4:
        if (random() % 8 == 0) keeper_->freeze();
        if (random() % 2 == 0) keeper_->unfreeze();
        break;
      default:
        requests(static_cast<int>(random() % 40));
    }
    const SpeculatorState s = keeper_->state();
    for (const std::uint64_t v : s.banned) banned.insert(v);
    EXPECT_FALSE(banned.contains(s.served.value));
    if (s.served.value > 0) {
      EXPECT_THAT(s.proven, ::testing::Contains(s.served.value)) << "step " << step;
    }
    if (s.canary) {
      EXPECT_FALSE(banned.contains(s.canary->version.value));
    }
    EXPECT_EQ(published_.back().first, s.served.value);
    EXPECT_EQ(published_.back().second, s.canary ? s.canary->version.value : 0);
  }
  EXPECT_GT(keeper_->state().proven.size() + banned.size(), 5u);
}

}  // namespace
}  // namespace foretoken
