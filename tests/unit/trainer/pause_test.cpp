// A server that measures plain serving asks the trainer to pause: it does, at once, and goes on
// when told, or when the server is gone.
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include "tests/support/memory_network.h"
#include "tests/support/test_keys.h"
#include "tests/unit/trainer/synthetic_traffic.h"
#include "trainer/head/speculator_learner.h"
#include "trainer/ingest/trainer.h"

namespace foretoken::trainer {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;

TEST(Pause, TheTrainerRestsWhileTheServerSaysSo) {
  spdlog::set_level(spdlog::level::off);
  const fs::path folder =
      fs::temp_directory_path() / ("foretoken-pause-" + std::to_string(::getpid()));
  fs::remove_all(folder);
  ManualClock clock;
  MemoryNetwork network(clock, 1);
  Link server = network.open_server();
  TrainerOptions options;
  options.state_root = folder;
  options.session.signing_key = test_signing_key();
  options.session.make_learner = learner_factory({});
  auto trainer = *Trainer::create(options, network.open_trainer(), clock);
  SyntheticTraffic traffic(1);
  ServerHello hello;
  hello.run = 7;
  hello.model_fingerprint = test_fingerprint();
  const auto say = [&](bool pause) {
    hello.pause = pause;
    ASSERT_TRUE(server.sender->try_send(serialize(hello)));
  };
  // Ten seconds of traffic and turns; how many requests were learned from meanwhile.
  const auto learned = [&](int seconds, std::optional<bool> pause) {
    const std::int64_t before = trainer->status().trained_requests;
    for (int i = 0; i < seconds * 10; ++i) {
      if (i % 10 == 0 && pause) say(*pause);
      if (i % 5 == 0) (void)server.sender->try_send(serialize(traffic.next(0.0f, 40)));
      trainer->turn();
      clock.advance(100ms);
    }
    return trainer->status().trained_requests - before;
  };
  EXPECT_GT(learned(10, false), 0);
  say(true);
  trainer->turn();
  EXPECT_EQ(learned(30, true), 0);
  EXPECT_GT(trainer->status().buffer_requests, 60);  // what came meanwhile is kept
  EXPECT_GT(learned(10, false), 0);
  say(true);
  trainer->turn();
  EXPECT_EQ(learned(9, std::nullopt), 0);   // no hello at all: for ten seconds it may come
  EXPECT_GT(learned(10, std::nullopt), 0);  // then the server is gone
  fs::remove_all(folder);
  spdlog::set_level(spdlog::level::info);
}

}  // namespace
}  // namespace foretoken::trainer
