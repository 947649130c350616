// The server's end of the link: what it drops, refuses, keeps and serves.
#include "runtime/trace/server_link.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>

#include "foretoken/protocol/atomic_file.h"
#include "foretoken/protocol/trace.h"
#include "runtime/speculate/fusion_bundle.h"
#include "runtime/speculate/learned.h"
#include "tests/support/linked_engine.h"
#include "tests/support/memory_network.h"
#include "tests/support/test_keys.h"
#include "tests/unit/protocol/sample_trace.h"

namespace foretoken {
namespace {

using namespace std::chrono_literals;
using ::testing::ElementsAre;
using ::testing::Pair;
namespace fs = std::filesystem;

Bundle good_bundle(std::uint64_t version) {
  FusionTable table = FusionTable::initial();
  table.bias[3] += 0.001f * static_cast<float>(version);
  Bundle bundle = bundle_of(table);
  bundle.version = {version};
  bundle.model_fingerprint = sample_fingerprint();
  bundle.verdict = "promoted: test";
  return bundle;
}

std::vector<std::byte> signed_bytes(const Bundle& bundle) {
  return serialize(bundle, test_signing_key());
}

class ServerLinkTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / ("foretoken-link-" + std::to_string(::getpid()));
    fs::remove_all(root_);
    options_.model_fingerprint = sample_fingerprint();
    options_.trusted_signers = test_signers();
    options_.state_root = root_ / "state";
    options_.versions.canary_fraction = 0;  // canaries have a test of their own
    start();
    trainer_ = network_.open_trainer();
  }
  void TearDown() override { fs::remove_all(root_); }

  // A (re)start of the server process.
  void start() {
    network_.crash_server();
    swaps_.clear();
    auto link = ServerLink::create(options_, network_.open_server(5), clock_);
    ASSERT_TRUE(link) << link.error().message;
    server_ = std::move(link).value();
    server_->restore(engine_);
  }
  void told(const SpeculatorChoice& choice) {
    const LearnedPointer& weights = choice.served;
    ASSERT_TRUE(weights && weights->fusion.finite());
    if (weights->version.value > 0) swaps_.push_back(weights->version.value);
  }
  void deliver(const Message& message) {
    ASSERT_TRUE(trainer_.sender->try_send(message));
    server_->turn();
  }
  void publish(const std::vector<std::byte>& bundle, std::uint64_t version) {
    for (const Message& message : chunk_bundle({version}, bundle, 100)) {
      trainer_.sender->try_send(message);
      server_->turn();
    }
  }
  std::vector<Message> sent() {
    std::vector<Message> messages;
    while (auto message = trainer_.receiver->try_receive()) messages.push_back(std::move(*message));
    return messages;
  }
  ServerHello last_hello() {
    ServerHello hello;
    for (const Message& message : sent()) {
      if (auto parsed = parse_server_hello(message)) hello = *parsed;
    }
    return hello;
  }

  ManualClock clock_;
  MemoryNetwork network_{clock_, 1};
  fs::path root_;
  ServerLinkOptions options_;
  Link trainer_;
  ToldEngine engine_{[this](const SpeculatorChoice& choice) { told(choice); }};
  std::unique_ptr<ServerLink> server_;
  std::vector<std::uint64_t> swaps_;
};

TEST_F(ServerLinkTest, SendsWhatTheEngineLogged) {
  auto sink = server_->sink();
  sink(std::make_unique<RequestTrace>(sample_trace(7)));
  server_->turn();
  const auto messages = sent();
  ASSERT_GE(messages.size(), 1u);
  const auto trace = parse_trace(messages[0]);
  ASSERT_TRUE(trace) << trace.error().message;
  EXPECT_EQ(trace->request.value, 7u);
  EXPECT_NE(trace->server_run, sample_trace().server_run);  // the link's own
  EXPECT_EQ(server_->stats().traces_sent, 1);
  EXPECT_TRUE(server_->stats().traces_dropped.empty());
}

TEST_F(ServerLinkTest, CountsWhatItDropsByReason) {
  auto sink = server_->sink();
  const auto push = [&](int n) {
    for (int i = 0; i < n; ++i) sink(std::make_unique<RequestTrace>(sample_trace()));
  };
  push(300);  // 256 fit into the ring; of those, 5 into the queue
  server_->turn();
  EXPECT_EQ(server_->stats().traces_sent, 5);
  EXPECT_THAT(server_->stats().traces_dropped,
              ElementsAre(Pair("no_trainer", 251), Pair("ring_full", 44)));
  sent();
  TrainerStatus status;
  status.run = 3;
  deliver(serialize(status));  // now it is known that somebody is there
  EXPECT_TRUE(server_->stats().trainer_connected);
  sent();
  push(10);
  server_->turn();
  EXPECT_EQ(server_->stats().traces_dropped.at("hwm"), 5);
  server_->count_opted_out();
  clock_.advance(6s);
  server_->turn();
  EXPECT_EQ(server_->stats().traces_dropped.at("opted_out"), 1);
  EXPECT_FALSE(server_->stats().trainer_connected);
  EXPECT_EQ(server_->stats().traces_sent, 10);
}

TEST_F(ServerLinkTest, KeepsTracesOnDiskInTheBytesOfTheWire) {
  options_.trace_dir = root_ / "traces";
  start();
  server_->sink()(std::make_unique<RequestTrace>(sample_trace(7)));
  server_->turn();
  const auto messages = sent();
  ASSERT_FALSE(messages.empty());
  int records = 0;
  ASSERT_TRUE(read_segments(options_.trace_dir, 0, [&](std::uint64_t, const Message& message) {
    EXPECT_EQ(message, messages[0]);
    ++records;
    return true;
  }));
  EXPECT_EQ(records, 1);
}

TEST_F(ServerLinkTest, ServesAGoodBundleAndKeepsItAcrossARestart) {
  publish(signed_bytes(good_bundle(4)), 4);
  EXPECT_THAT(swaps_, ElementsAre(4));
  EXPECT_EQ(last_hello().served.value, 4u);
  start();
  EXPECT_THAT(swaps_, ElementsAre(4));  // at once, before anybody was heard
  server_->turn();
  EXPECT_EQ(last_hello().served.value, 4u);
  publish(signed_bytes(good_bundle(5)), 5);
  EXPECT_THAT(swaps_, ElementsAre(4, 5));
}

TEST_F(ServerLinkTest, RefusesByNameAndServesOn) {
  publish(signed_bytes(good_bundle(4)), 4);
  const auto refused = [&](std::vector<std::byte> bytes, std::uint64_t version) {
    const auto before = server_->stats().bundles_rejected;
    publish(bytes, version);
    for (const auto& [reason, count] : server_->stats().bundles_rejected) {
      const auto old = before.find(reason);
      if (old == before.end() || old->second != count) return reason;
    }
    return std::string("accepted");
  };
  auto flipped = signed_bytes(good_bundle(5));
  flipped[flipped.size() / 2] ^= std::byte(1);
  EXPECT_EQ(refused(flipped, 5), "checksum");
  // Nobody vouched for its number: the trainer may send the real version 5.
  EXPECT_EQ(last_hello().refused.value, 0u);
  auto cut = signed_bytes(good_bundle(5));
  cut.resize(cut.size() - 7);
  EXPECT_EQ(refused(cut, 5), "truncated");
  Bundle bundle = good_bundle(6);
  std::array<float, kFusionClasses> values{};
  values[9] = NAN;
  bundle.tensors["fusion.bias"] = BundleTensor::f32({kFusionClasses}, values);
  EXPECT_EQ(refused(signed_bytes(bundle), 6), "non-finite");
  bundle = good_bundle(7);
  bundle.model_fingerprint[0] ^= 1;
  EXPECT_EQ(refused(signed_bytes(bundle), 7), "fingerprint");
  bundle = good_bundle(8);
  bundle.tensors["fusion.bias"] = BundleTensor::f32({64}, std::vector<float>(64));
  EXPECT_EQ(refused(signed_bytes(bundle), 8), "shape");
  EXPECT_EQ(last_hello().refused.value, 8u);  // so that the trainer does not send it for ever
  bundle = good_bundle(9);
  bundle.kind = "poem";
  EXPECT_EQ(refused(signed_bytes(bundle), 9), "kind");
  EXPECT_EQ(refused(signed_bytes(good_bundle(3)), 3), "version");
  EXPECT_EQ(refused(std::vector<std::byte>(500), 10), "magic");
  EXPECT_EQ(refused(serialize(good_bundle(10), test_signing_key(2)), 10), "signature");
  EXPECT_THAT(swaps_, ElementsAre(4));
  EXPECT_EQ(last_hello().served.value, 4u);
  // The same bundle again is no offence, and a good one is still welcome.
  EXPECT_EQ(refused(signed_bytes(good_bundle(4)), 4), "accepted");
  EXPECT_EQ(refused(signed_bytes(good_bundle(11)), 11), "accepted");
  EXPECT_THAT(swaps_, ElementsAre(4, 11));
}

TEST_F(ServerLinkTest, AFlippedBitOnTheWayIsNamedToo) {
  Message message = chunk_bundle({4}, signed_bytes(good_bundle(4))).front();
  message[2][50] ^= std::byte(2);
  deliver(message);
  EXPECT_THAT(server_->stats().bundles_rejected, ElementsAre(Pair("checksum", 1)));
  EXPECT_TRUE(swaps_.empty());
  deliver({});
  deliver({Frame(32), Frame(3)});
  deliver(serialize(sample_trace()));
  EXPECT_THAT(server_->stats().bundles_rejected,
              ElementsAre(Pair("checksum", 1), Pair("magic", 1), Pair("protocol", 1),
                          Pair("truncated", 1)));
}

TEST_F(ServerLinkTest, ADamagedStateFileIsSetAsideAndNothingIsServed) {
  publish(signed_bytes(good_bundle(4)), 4);
  const auto state = *StateDir::open(options_.state_root, options_.model_fingerprint);
  auto bytes = *read_file(state.bundles().path_of({4}), 1 << 20);
  bytes[100] ^= std::byte(1);
  ASSERT_TRUE(write_file_atomically(state.bundles().path_of({4}), bytes));
  start();
  EXPECT_TRUE(swaps_.empty());
  EXPECT_FALSE(fs::exists(state.bundles().path_of({4})));
  EXPECT_TRUE(fs::exists(state.bundles().path_of({4}).string() + ".damaged"));
  publish(signed_bytes(good_bundle(4)), 4);  // the trainer still has it
  EXPECT_THAT(swaps_, ElementsAre(4));
}

TEST_F(ServerLinkTest, SaysHelloEverySecondAndAtNews) {
  server_->turn();
  EXPECT_EQ(sent().size(), 1u);
  for (int i = 0; i < 9; ++i) {
    clock_.advance(100ms);
    server_->turn();
  }
  EXPECT_TRUE(sent().empty());
  clock_.advance(100ms);
  server_->turn();
  EXPECT_EQ(sent().size(), 1u);
  TrainerStatus status;
  status.run = 9;
  deliver(serialize(status));  // a trainer that was not there
  EXPECT_EQ(sent().size(), 1u);
  deliver(serialize(status));
  EXPECT_TRUE(sent().empty());
}

TEST(TraceRing, IsBoundedByCountAndByBytes) {
  TraceRing ring(4, 1 << 20);
  for (int i = 0; i < 4; ++i)
    EXPECT_TRUE(ring.try_push(std::make_unique<RequestTrace>(sample_trace(1 + std::uint64_t(i)))));
  EXPECT_FALSE(ring.try_push(std::make_unique<RequestTrace>(sample_trace())));
  for (std::uint64_t i = 1; i <= 4; ++i) EXPECT_EQ(ring.try_pop()->request.value, i);
  EXPECT_EQ(ring.try_pop(), nullptr);
  // 1000 generated tokens are about 600 KiB: one fits, two do not; the first always enters.
  TraceRing small(100, 1 << 20);
  EXPECT_TRUE(small.try_push(std::make_unique<RequestTrace>(sample_trace(1, 1000))));
  EXPECT_FALSE(small.try_push(std::make_unique<RequestTrace>(sample_trace(2, 1000))));
  ASSERT_NE(small.try_pop(), nullptr);
  EXPECT_TRUE(small.try_push(std::make_unique<RequestTrace>(sample_trace(3, 5000))));
}

TEST(TraceRing, CrossesThreadsInOrder) {
  TraceRing ring(8, 1 << 30);
  constexpr std::uint64_t kTraces = 20000;
  std::thread producer([&] {
    for (std::uint64_t i = 1; i <= kTraces; ++i) {
      auto trace = std::make_unique<RequestTrace>();
      trace->request = {i};
      trace->tokens.assign(i % 7, 1);
      // A refused trace is gone, as in the engine; the sequence shows which arrived.
      while (!ring.try_push(std::move(trace))) {
        trace = std::make_unique<RequestTrace>();
        trace->request = {i};
        std::this_thread::yield();
      }
    }
  });
  std::uint64_t expected = 1;
  while (expected <= kTraces) {
    if (auto trace = ring.try_pop()) {
      ASSERT_EQ(trace->request.value, expected++);
    } else {
      std::this_thread::yield();
    }
  }
  producer.join();
}

}  // namespace
}  // namespace foretoken
