// The link over real sockets, and its in-memory twin: the same promises.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <thread>

#include "foretoken/protocol/control.h"
#include "tests/support/memory_network.h"

namespace foretoken {
namespace {

using namespace std::chrono_literals;

Message hello(std::uint64_t run) { return serialize(ServerHello{run}); }

Link open_server() {
  auto link = open_server_link({"tcp://127.0.0.1:*", "tcp://127.0.0.1:*", 50});
  EXPECT_TRUE(link) << link.error().message;
  return std::move(link).value();
}

std::optional<Message> receive(Receiver& receiver, std::chrono::milliseconds at_most = 10s) {
  const auto end = std::chrono::steady_clock::now() + at_most;
  while (std::chrono::steady_clock::now() < end) {
    if (auto message = receiver.try_receive()) return message;
    receiver.wait(50ms);
  }
  return std::nullopt;
}

bool send_until_taken(Sender& sender, const Message& message) {
  for (int i = 0; i < 1000; ++i) {
    if (sender.try_send(message)) return true;
    std::this_thread::sleep_for(10ms);
  }
  return false;
}

TEST(ZmqLink, CarriesMessagesBothWays) {
  Link server = open_server();
  Link trainer = *open_trainer_link(server.endpoints);
  ASSERT_TRUE(send_until_taken(*server.sender, hello(5)));
  auto got = receive(*trainer.receiver);
  ASSERT_TRUE(got);
  EXPECT_EQ(parse_server_hello(*got)->run, 5u);
  TrainerStatus status;
  status.step = 17;
  ASSERT_TRUE(send_until_taken(*trainer.sender, serialize(status)));
  got = receive(*server.receiver);
  ASSERT_TRUE(got);
  EXPECT_EQ(parse_trainer_status(*got)->step, 17);
}

TEST(ZmqLink, WithoutAPeerASendIsRefused) {
  Link server = open_server();
  for (int i = 0; i < 1000; ++i) EXPECT_FALSE(server.sender->try_send(hello(1)));
  EXPECT_FALSE(server.sender->ready());
  Link trainer = *open_trainer_link({"tcp://127.0.0.1:1", "tcp://127.0.0.1:1", 50});
  EXPECT_FALSE(trainer.sender->try_send(hello(1)));
}

TEST(ZmqLink, APeerThatDoesNotReadFillsTheQueueAndNoMore) {
  Link server = open_server();
  Link trainer = *open_trainer_link(server.endpoints);
  ASSERT_TRUE(send_until_taken(*server.sender, hello(0)));
  EXPECT_TRUE(server.sender->ready());
  // Far more than two high-water marks of 64 KiB messages and the kernel's socket buffers.
  const Message big = seal(MessageType::kTrace, {Frame(65536)});
  int taken = 0;
  for (int i = 0; i < 4000; ++i) taken += server.sender->try_send(big);
  EXPECT_LT(taken, 4000);
  // Once it reads again, everything that was taken arrives, whole.
  int received = 0;
  while (received < taken + 1) {
    const auto message = receive(*trainer.receiver);
    ASSERT_TRUE(message) << received << " of " << taken + 1;
    EXPECT_TRUE(check_envelope(*message));
    ++received;
  }
}

TEST(ZmqLink, EitherSideMayComeBack) {
  Link server = open_server();
  const LinkEndpoints endpoints = server.endpoints;
  {
    Link trainer = *open_trainer_link(endpoints);
    ASSERT_TRUE(send_until_taken(*server.sender, hello(1)));
    ASSERT_TRUE(receive(*trainer.receiver));
  }
  Link trainer = *open_trainer_link(endpoints);
  const auto heard = [&](std::uint64_t run) {
    for (int i = 0; i < 200; ++i) {
      server.sender->try_send(hello(run));
      const auto got = receive(*trainer.receiver, 100ms);
      if (got && parse_server_hello(*got)->run == run) return true;
    }
    return false;
  };
  EXPECT_TRUE(heard(2));
  server = {};  // the server dies and another binds the same ports
  auto again = open_server_link(endpoints);
  for (int i = 0; i < 100 && !again; ++i) {  // the kernel may hold the port for a moment
    std::this_thread::sleep_for(50ms);
    again = open_server_link(endpoints);
  }
  ASSERT_TRUE(again) << again.error().message;
  server = std::move(again).value();
  EXPECT_TRUE(heard(3));
}

TEST(ZmqLink, AnEndpointThatIsTakenIsNamed) {
  Link server = open_server();
  const auto second = open_server_link(server.endpoints);
  ASSERT_FALSE(second);
  EXPECT_NE(second.error().message.find(server.endpoints.traces), std::string::npos)
      << second.error().message;
  EXPECT_FALSE(open_server_link({"nonsense", "tcp://127.0.0.1:*"}));
}

struct CurveKeys {
  CurveKeyPair server = CurveKeyPair::generate(), trainer = CurveKeyPair::generate();
  LinkEndpoints for_server() const {
    return {"tcp://127.0.0.1:*", "tcp://127.0.0.1:*", 50, LinkKeys{server, {trainer.public_key}}};
  }
};

LinkEndpoints with_keys(LinkEndpoints endpoints, std::optional<LinkKeys> keys) {
  endpoints.keys = std::move(keys);
  return endpoints;
}

TEST(ZmqLinkWithKeys, CarriesMessagesBothWays) {
  const CurveKeys keys;
  Link server = *open_server_link(keys.for_server());
  Link trainer = *open_trainer_link(
      with_keys(server.endpoints, LinkKeys{keys.trainer, {keys.server.public_key}}));
  ASSERT_TRUE(send_until_taken(*server.sender, hello(5)));
  ASSERT_TRUE(receive(*trainer.receiver));
  ASSERT_TRUE(send_until_taken(*trainer.sender, hello(6)));
  EXPECT_EQ(parse_server_hello(*receive(*server.receiver))->run, 6u);
  EXPECT_EQ(server.peers_refused->load(), 0);
}

// Whoever is not trusted gets nothing, brings nothing, and is counted: a stranger who knows the
// server's public key, one who takes it for another server, and one without any keys.
TEST(ZmqLinkWithKeys, RefusesStrangersAndCountsThem) {
  const CurveKeys keys;
  const CurveKeyPair stranger = CurveKeyPair::generate();
  const std::optional<LinkKeys> wrong[] = {LinkKeys{stranger, {keys.server.public_key}},
                                           LinkKeys{keys.trainer, {stranger.public_key}},
                                           std::nullopt};
  for (const auto& theirs : wrong) {
    Link server = *open_server_link(keys.for_server());
    Link peer = *open_trainer_link(with_keys(server.endpoints, theirs));
    for (int i = 0; i < 1000 && server.peers_refused->load() < 2; ++i) {
      EXPECT_FALSE(server.sender->try_send(hello(1)));
      peer.sender->try_send(hello(2));
      EXPECT_FALSE(server.receiver->try_receive());
      EXPECT_FALSE(peer.receiver->try_receive());
      std::this_thread::sleep_for(10ms);
    }
    EXPECT_GE(server.peers_refused->load(), 2);  // both sockets
    // They do not stand in the way of the one who may.
    Link trainer = *open_trainer_link(
        with_keys(server.endpoints, LinkKeys{keys.trainer, {keys.server.public_key}}));
    ASSERT_TRUE(send_until_taken(*server.sender, hello(5)));
    EXPECT_TRUE(receive(*trainer.receiver));
  }
}

TEST(ZmqLinkWithKeys, AServerWithoutTrustedTrainersIsClosed) {
  CurveKeys keys;
  LinkEndpoints endpoints = keys.for_server();
  endpoints.keys->peers.clear();
  Link server = *open_server_link(endpoints);
  Link trainer = *open_trainer_link(
      with_keys(server.endpoints, LinkKeys{keys.trainer, {keys.server.public_key}}));
  for (int i = 0; i < 1000 && server.peers_refused->load() < 2; ++i) {
    EXPECT_FALSE(server.sender->try_send(hello(1)));
    std::this_thread::sleep_for(10ms);
  }
  EXPECT_GE(server.peers_refused->load(), 2);
}

// The server was told to trust it, and started again.
TEST(ZmqLinkWithKeys, ATrainerThatIsTrustedLaterGetsIn) {
  CurveKeys keys;
  LinkEndpoints endpoints = keys.for_server();
  endpoints.keys->peers.clear();
  Link server = *open_server_link(endpoints);
  const LinkEndpoints bound = server.endpoints;
  Link trainer =
      *open_trainer_link(with_keys(bound, LinkKeys{keys.trainer, {keys.server.public_key}}));
  for (int i = 0; i < 1000 && server.peers_refused->load() < 2; ++i)
    std::this_thread::sleep_for(10ms);
  server = {};
  const auto trusting = with_keys(bound, keys.for_server().keys);
  auto again = open_server_link(trusting);
  for (int i = 0; i < 100 && !again; ++i) {
    std::this_thread::sleep_for(50ms);
    again = open_server_link(trusting);
  }
  ASSERT_TRUE(again) << again.error().message;
  std::optional<Message> got;
  for (int i = 0; i < 200 && !got; ++i) {
    again->sender->try_send(hello(9));
    got = receive(*trainer.receiver, 100ms);
  }
  ASSERT_TRUE(got);
  ASSERT_TRUE(send_until_taken(*trainer.sender, hello(6)));
  EXPECT_TRUE(receive(*again->receiver));
}

struct Simulated : ::testing::Test {
  ManualClock clock;
  MemoryNetwork network{clock, 11};
};

TEST_F(Simulated, KeepsOrderAndHonoursTheClock) {
  Link server = network.open_server();
  EXPECT_FALSE(server.sender->try_send(hello(1)));  // nobody there
  Link trainer = network.open_trainer();
  network.set_faults({.delay_min = 10ms, .delay_max = 100ms});
  for (std::uint64_t i = 0; i < 50; ++i) ASSERT_TRUE(server.sender->try_send(hello(i)));
  EXPECT_FALSE(trainer.receiver->wait(0ms));
  EXPECT_FALSE(trainer.receiver->try_receive());
  clock.advance(200ms);
  for (std::uint64_t i = 0; i < 50; ++i) {
    EXPECT_EQ(parse_server_hello(*trainer.receiver->try_receive())->run, i);
  }
  EXPECT_FALSE(trainer.receiver->try_receive());
}

TEST_F(Simulated, ReordersLosesDoublesAndDamages) {
  Link server = network.open_server(5000), trainer = network.open_trainer();
  network.set_faults(
      {.loss = 0.1, .duplicate = 0.1, .corrupt = 0.1, .delay_max = 100ms, .reorder = true});
  for (std::uint64_t i = 0; i < 1000; ++i) server.sender->try_send(hello(i));
  clock.advance(1s);
  std::map<std::uint64_t, int> seen;
  int damaged = 0, inversions = 0;
  std::uint64_t last = 0;
  while (auto message = trainer.receiver->try_receive()) {
    const auto parsed = parse_server_hello(*message);
    if (!parsed) {
      ++damaged;
      continue;
    }
    inversions += parsed->run < last;
    last = parsed->run;
    ++seen[last];
  }
  EXPECT_GT(damaged, 20);
  EXPECT_GT(inversions, 20);
  EXPECT_LT(seen.size(), 950u);
  EXPECT_GT(seen.size(), 700u);
  EXPECT_TRUE(std::any_of(seen.begin(), seen.end(), [](const auto& e) { return e.second == 2; }));
}

TEST_F(Simulated, ACrashLosesWhatIsInFlightAndTheOldLinkIsDead) {
  Link server = network.open_server(), trainer = network.open_trainer();
  ASSERT_TRUE(server.sender->try_send(hello(1)));
  network.crash_trainer();
  EXPECT_EQ(network.in_flight(), 0u);
  EXPECT_FALSE(server.sender->try_send(hello(2)));
  Link again = network.open_trainer();
  ASSERT_TRUE(server.sender->try_send(hello(3)));
  EXPECT_FALSE(trainer.receiver->try_receive());
  EXPECT_FALSE(trainer.sender->try_send(hello(4)));
  EXPECT_EQ(parse_server_hello(*again.receiver->try_receive())->run, 3u);
}

TEST_F(Simulated, TheSameSeedGivesTheSameRun) {
  const auto run = [](std::uint64_t seed) {
    ManualClock clock;
    MemoryNetwork network(clock, seed);
    Link server = network.open_server(), trainer = network.open_trainer();
    network.set_faults({.loss = 0.3, .delay_max = 50ms, .reorder = true});
    std::vector<std::uint64_t> seen;
    for (std::uint64_t i = 0; i < 200; ++i) {
      server.sender->try_send(hello(i));
      clock.advance(1ms);
      while (auto message = trainer.receiver->try_receive()) {
        seen.push_back(parse_server_hello(*message)->run);
      }
    }
    return seen;
  };
  EXPECT_EQ(run(1), run(1));
  EXPECT_NE(run(1), run(2));
}

}  // namespace
}  // namespace foretoken
