// A trainer with a valid key whose weights are good, and one whose weights are not: what the server
// makes of them, from the bundle on the wire to what serves, judged by real replays of real weights
// on requests whose rounds are what those weights would have had accepted.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "runtime/evaluate/portfolio_replay.h"
#include "runtime/speculate/fusion_bundle.h"
#include "runtime/speculate/learned.h"
#include "runtime/trace/server_link.h"
#include "tests/support/linked_engine.h"
#include "tests/support/memory_network.h"
#include "tests/support/test_keys.h"
#include "tests/unit/trainer/synthetic_traffic.h"

namespace foretoken {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;
using trainer::SyntheticTraffic;

class Canary : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("foretoken-canary-" + std::to_string(::getpid()));
    fs::remove_all(folder_);
    options_.model_fingerprint = trainer::test_fingerprint();
    options_.trusted_signers = test_signers();
    options_.state_root = folder_;
    options_.shadow.kinds = kinds_named("fusion");  // the table alone: nothing stands in for it
    start();
    peer_ = network_.open_trainer();
  }
  void TearDown() override { fs::remove_all(folder_); }
  void start() {
    network_.crash_server();
    server_ = *ServerLink::create(options_, network_.open_server(), clock_);
    server_->restore(engine_);
  }
  void publish(std::uint64_t version, const FusionTable& table) {
    Bundle bundle = bundle_of(table);
    bundle.version = {version};
    bundle.model_fingerprint = trainer::test_fingerprint();
    bundle.verdict = "promoted: so the trainer says";
    for (const Message& message : chunk_bundle({version}, serialize(bundle, test_signing_key())))
      ASSERT_TRUE(peer_.sender->try_send(message));
    server_->turn();
  }
  // One request, drafted for as the engine would have.
  void request() {
    auto trace = std::make_unique<RequestTrace>(traffic_.next(0.0f, 80));
    const LearnedPointer& drafter = choice_.of(trace->request);
    canary_requests_ += drafter == choice_.canary;
    PortfolioReplay replay(kinds_named("fusion"), drafter.get());
    const PortfolioWalk walk = replay.walk_fixed(*trace, 4);
    for (std::size_t r = 0; r < walk.starts.size(); ++r) {
      RoundTrace& round = trace->rounds.emplace_back();
      round.start = walk.starts[r];
      round.accepted = walk.accepted[r];
      round.version = drafter->version;
    }
    server_->sink()(std::move(trace));
    clock_.advance(1s);
    server_->turn();
  }
  int requests_until_decided(int most) {
    int n = 0;
    while (choice_.canary && n < most) {
      request();
      ++n;
    }
    return n;
  }
  ServerHello hello() {
    server_->turn();  // what was judged in the last turn is said in the next
    ServerHello last;
    while (auto message = peer_.receiver->try_receive()) {
      if (auto parsed = parse_server_hello(*message)) last = *parsed;
    }
    return last;
  }
  static FusionTable reversed() {
    FusionTable table = trainer::true_table();
    for (float& bias : table.bias) bias = -bias;
    return table;
  }

  ManualClock clock_;
  MemoryNetwork network_{clock_, 1};
  fs::path folder_;
  ServerLinkOptions options_;
  Link peer_;
  ToldEngine engine_{[this](const SpeculatorChoice& choice) { choice_ = choice; }};
  std::unique_ptr<ServerLink> server_;
  SyntheticTraffic traffic_{1};
  SpeculatorChoice choice_;
  int canary_requests_ = 0;
};

TEST_F(Canary, GoodWeightsArePromotedBadOnesRolledBackAndNamed) {
  publish(1, trainer::true_table());
  ASSERT_TRUE(choice_.canary);
  EXPECT_EQ(choice_.served->version.value, 0u);
  EXPECT_EQ(hello().canary.value, 1u);
  requests_until_decided(400);
  ASSERT_EQ(choice_.served->version.value, 1u);
  EXPECT_EQ(hello().served.value, 1u);

  // A valid signature over bad weights.
  canary_requests_ = 0;
  publish(2, reversed());
  ASSERT_TRUE(choice_.canary);
  EXPECT_LE(requests_until_decided(400), 60);
  EXPECT_LE(canary_requests_, 25);  // the cost: what these few lost
  EXPECT_EQ(choice_.served->version.value, 1u);
  const ServerHello told = hello();
  EXPECT_EQ(told.served.value, 1u);
  EXPECT_EQ(told.refused.value, 2u);
  EXPECT_THAT(told.refused_reason, ::testing::HasSubstr("rolled back"));
  const SpeculatorState state = server_->stats().speculator;
  EXPECT_EQ(state.rolled_back, 1);
  EXPECT_THAT(state.banned, ::testing::ElementsAre(2));
  EXPECT_EQ(state.lineage.back().at("event").as_string(), "rolled_back");
  EXPECT_EQ(state.lineage.back().at("version").to_number<int>(), 2);

  // Once more, and after a restart: not even a canary.
  publish(2, reversed());
  EXPECT_FALSE(choice_.canary);
  EXPECT_EQ(server_->stats().bundles_rejected.at("version"), 1);
  start();
  EXPECT_EQ(choice_.served->version.value, 1u);
  publish(2, trainer::true_table());
  EXPECT_FALSE(choice_.canary);
  EXPECT_EQ(choice_.served->version.value, 1u);
}

// The traffic changes so that what was proven is no longer true: the predecessor takes over.
TEST_F(Canary, AVersionThatWasGoodOnceIsWatched) {
  publish(1, trainer::true_table());
  requests_until_decided(400);
  ASSERT_EQ(choice_.served->version.value, 1u);
  traffic_ = SyntheticTraffic(2, FusionTable::initial());
  for (int i = 0; i < 1200; ++i) request();
  const bool same = choice_.served->version.value == 1;
  traffic_ = SyntheticTraffic(3, reversed());
  for (int i = 0; i < 3000 && choice_.served->version.value == 1; ++i) request();
  EXPECT_EQ(choice_.served->version.value, 0u) << "same until then: " << same;
  EXPECT_EQ(hello().refused.value, 1u);
}

}  // namespace
}  // namespace foretoken
