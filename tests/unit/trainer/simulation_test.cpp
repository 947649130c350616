// Server side and trainer side in one deterministic simulation: a seeded schedule of loss, delay,
// reordering, duplicates, damage and crashes of either side, over the real state machines and real
// folders.
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <map>

#include "runtime/speculate/learned.h"
#include "runtime/trace/server_link.h"
#include "tests/support/linked_engine.h"
#include "tests/support/memory_network.h"
#include "tests/support/test_keys.h"
#include "tests/unit/trainer/synthetic_traffic.h"
#include "trainer/head/speculator_learner.h"
#include "trainer/ingest/trainer.h"

namespace foretoken::trainer {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;

LearnerFactory small_steps() {
  LearnerOptions options;
  options.fusion.positions_per_step = 64;
  return learner_factory(options);
}

class World {
 public:
  explicit World(std::uint64_t seed) : random_(seed), network_(clock_, seed), traffic_(seed) {
    folder_ = fs::temp_directory_path() / ("foretoken-simulation-" + std::to_string(::getpid()));
    fs::remove_all(folder_);
    start_server();
    start_trainer();
  }
  ~World() { fs::remove_all(folder_); }

  void start_server() {
    ServerLinkOptions options;
    options.model_fingerprint = test_fingerprint();
    options.trusted_signers = test_signers();
    options.state_root = folder_ / "server";
    options.versions.canary_fraction = 0;  // what is received serves: the link is what is on trial
    server_ = *ServerLink::create(options, network_.open_server(50), clock_);
    last_ = 0;
    server_->restore(engine_);
  }
  void told(const LearnedWeights& weights) {
    const SpeculatorVersion version = weights.version;
    if (version.value == last_) return;
    // Law: within a run versions rise, across restarts they never fall, and a number is one
    // table for ever.
    EXPECT_GT(version.value, last_);
    EXPECT_GE(version.value, served_);
    const auto known = tables_.emplace(version.value, weights.fusion.bias).first;
    EXPECT_EQ(known->second, weights.fusion.bias) << "version " << version.value << " twice";
    last_ = served_ = version.value;
  }
  void crash_server() {
    network_.crash_server();
    server_.reset();
  }
  void start_trainer() {
    TrainerOptions options;
    options.state_root = folder_ / "trainer";
    options.session.signing_key = test_signing_key();
    options.session.gate.set_least_requests(4);
    options.session.make_learner = small_steps();
    trainer_ = *Trainer::create(options, network_.open_trainer(50), clock_);
  }
  void crash_trainer() {
    network_.crash_trainer();
    trainer_.reset();  // as SIGKILL: no checkpoint is written on the way out
  }

  // One tick of 200 ms: traffic, and each side that is up takes a turn.
  void tick(bool crashes, bool traffic = true) {
    clock_.advance(200ms);
    if (traffic && server_ && random_() % 2) {
      server_->sink()(
          std::make_unique<RequestTrace>(traffic_.next(random_() % 2 ? 0.8f : 0.0f, 40)));
      ++requests_;
    }
    if (server_) server_->turn();
    if (trainer_) trainer_->turn();
    if (!crashes) return;
    if (server_ && random_() % 60 == 0) crash_server();
    if (!server_ && random_() % 5 == 0) start_server();
    if (trainer_ && random_() % 60 == 0) crash_trainer();
    if (!trainer_ && random_() % 5 == 0) start_trainer();
  }

  void run() {
    network_.set_faults(
        {.loss = 0.05, .duplicate = 0.05, .corrupt = 0.02, .delay_max = 700ms, .reorder = true});
    for (int i = 0; i < 400; ++i) tick(true);
    // The weather clears: everything must come right by itself.
    network_.set_faults({});
    if (!server_) start_server();
    if (!trainer_) start_trainer();
    for (int i = 0; i < 400; ++i) tick(false);
    for (int i = 0; i < 20; ++i) tick(false, false);  // what was published last arrives
    const TrainerStatus status = trainer_->status();
    EXPECT_GT(status.current.value, 0u) << "nothing was published";
    EXPECT_EQ(served_, status.current.value)
        << "the server does not serve what the trainer published";
    EXPECT_TRUE(server_->stats().trainer_connected);
    EXPECT_LE(status.trained_requests, requests_) << "a request was learned from twice";
    EXPECT_LE(status.buffer_requests, requests_);
    EXPECT_GT(status.trained_requests, requests_ / 3);
    versions_ = tables_.size();
  }
  std::size_t versions_ = 0;

 private:
  std::mt19937_64 random_;
  ManualClock clock_;
  MemoryNetwork network_;
  SyntheticTraffic traffic_;
  fs::path folder_;
  ToldEngine engine_{[this](const SpeculatorChoice& choice) { told(*choice.served); }};
  std::unique_ptr<ServerLink> server_;
  std::unique_ptr<Trainer> trainer_;
  std::uint64_t served_ = 0, last_ = 0;  // last_: of this run
  std::int64_t requests_ = 0;
  std::map<std::uint64_t, std::array<float, kFusionClasses>> tables_;
};

TEST(Simulation, NoLawIsBrokenUnderFaults) {
  spdlog::set_level(spdlog::level::off);
  std::size_t versions = 0;
  for (std::uint64_t seed = 1; seed <= 8 && !::testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    World world(seed);
    world.run();
    versions += world.versions_;
  }
  EXPECT_GT(versions, 8u);  // the laws were put to the test
  spdlog::set_level(spdlog::level::info);
}

// A trainer whose folder was lost numbers on from what the server serves.
TEST(Simulation, ATrainerThatStartsOverNeverReusesANumber) {
  spdlog::set_level(spdlog::level::off);
  const fs::path folder =
      fs::temp_directory_path() / ("foretoken-start-over-" + std::to_string(::getpid()));
  fs::remove_all(folder);
  ManualClock clock;
  MemoryNetwork network(clock, 3);
  SyntheticTraffic traffic(3);
  ServerLinkOptions server_options;
  server_options.model_fingerprint = test_fingerprint();
  server_options.trusted_signers = test_signers();
  server_options.versions.canary_fraction = 0;
  std::vector<std::uint64_t> versions;
  ToldEngine engine([&](const SpeculatorChoice& choice) {
    if (choice.served->version.value > 0) versions.push_back(choice.served->version.value);
  });
  auto server = *ServerLink::create(server_options, network.open_server(), clock);
  server->restore(engine);
  for (int life = 0; life < 2; ++life) {
    TrainerOptions options;
    options.state_root = folder / std::to_string(life);
    options.session.signing_key = test_signing_key();
    options.session.gate.set_least_requests(4);
    options.session.make_learner = small_steps();
    auto trainer = *Trainer::create(options, network.open_trainer(), clock);
    const std::size_t before = versions.size();
    for (int i = 0; i < 500 && versions.size() == before; ++i) {
      clock.advance(200ms);
      server->sink()(std::make_unique<RequestTrace>(traffic.next(0.0f)));
      server->turn();
      trainer->turn();
    }
    EXPECT_GT(versions.size(), before);
    network.crash_trainer();
  }
  EXPECT_TRUE(std::is_sorted(versions.begin(), versions.end(), std::less_equal<>()));
  EXPECT_TRUE(server->stats().bundles_rejected.empty());
  fs::remove_all(folder);
  spdlog::set_level(spdlog::level::info);
}

}  // namespace
}  // namespace foretoken::trainer
