// Swaps, plain windows and traffic stores on a running engine: nothing that is emitted changes, and
// everything is measured.
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "foretoken/protocol/trace.h"
#include "runtime/engine/engine.h"
#include "runtime/speculate/learned.h"
#include "tests/support/engine_harness.h"
#include "tests/support/gguf_writer.h"

namespace foretoken::testing {
namespace {

class EngineSwap : public ::testing::Test {
 protected:
  void SetUp() override {
    TinyModelOptions tiny;
    tiny.n_layers = 2;
    write_tiny_model(directory_.file("target.gguf"), tiny);
    auto model = Model::load(directory_.file("target.gguf"), {.threads = 1});
    ASSERT_TRUE(model) << model.error().message;
    model_ = *model;
    calibration_ = KvCalibration::data_free(model_->kv_geometry());
    options_.threads = 1;
    options_.max_model_len = 1024;
    options_.max_num_seqs = 4;
  }
  void start() {
    auto engine = Engine::create(model_, calibration_, nullptr, nullptr, options_,
                                 [this](std::unique_ptr<RequestTrace> trace) {
                                   std::lock_guard lock(mutex_);
                                   traces_.push_back(std::move(trace));
                                 });
    ASSERT_TRUE(engine) << engine.error().message;
    engine_ = std::move(*engine);
  }
  // n requests, all at once; what each emitted.
  std::vector<std::vector<TokenId>> run(int n, int max_tokens, const std::string& key = "") {
    std::vector<std::vector<TokenId>> outputs(static_cast<std::size_t>(n));
    int done = 0;
    for (int i = 0; i < n; ++i) {
      EngineRequest r;
      r.id = engine_->next_request_id();
      for (int t = 0; t < 40; ++t) r.prompt.push_back((t * 7 + i * 13 + (t % 5) * 31) % 250);
      r.sampling.temperature = i % 2 ? .8f : 0;
      r.sampling.seed = 7 + std::uint64_t(i);
      r.max_tokens = max_tokens;
      r.key_id = key;
      r.sink = [&, i](EngineEvent&& event) {
        std::lock_guard lock(mutex_);
        auto& out = outputs[static_cast<std::size_t>(i)];
        out.insert(out.end(), event.tokens.begin(), event.tokens.end());
        if (event.finish && ++done == n) changed_.notify_all();
      };
      EXPECT_TRUE(engine_->submit(std::move(r)));
    }
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return done == n; });
    return outputs;
  }
  EngineStats idle_stats() {
    for (int i = 0; i < 500 && !engine_->idle(); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    return engine_->stats();
  }

  TemporaryDirectory directory_;
  std::shared_ptr<const Model> model_;
  std::shared_ptr<const KvCalibration> calibration_;
  EngineOptions options_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::unique_ptr<RequestTrace>> traces_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(EngineSwap, AHundredSwapsUnderLoadChangeNoToken) {
  start();
  const auto wanted = run(8, 200);
  engine_.reset();
  traces_.clear();
  start();
  std::atomic<bool> stop{false};
  std::thread swapper([&] {
    for (std::uint64_t v = 1; !stop; ++v) {
      auto served = std::make_shared<LearnedWeights>(), canary = std::make_shared<LearnedWeights>();
      served->version = {2 * v};
      canary->version = {2 * v + 1};
      for (float& bias : served->fusion.bias) bias = -bias * static_cast<float>(v % 3);
      engine_->set_learned({served, v % 2 ? canary : nullptr, v % 2 ? .5 : 0});
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  });
  std::vector<std::vector<std::vector<TokenId>>> got;
  for (int i = 0; i < 50 && engine_->stats().swaps < 100; ++i) got.push_back(run(8, 200));
  stop = true;
  swapper.join();
  for (const auto& outputs : got) EXPECT_EQ(outputs, wanted);
  const EngineStats stats = idle_stats();
  EXPECT_GE(stats.swaps, 100);
  EXPECT_LE(stats.swap_pause_p50_ms, stats.swap_pause_p99_ms);
  EXPECT_LE(stats.swap_pause_p99_ms, stats.swap_pause_max_ms);
  EXPECT_GT(stats.swap_pause_p50_ms, 0);
  EXPECT_GT(stats.by_version.size(), 10u);
}

TEST_F(EngineSwap, PlainWindowsChangeNoTokenAndCaptureNothing) {
  options_.plain_fraction = 0;
  start();
  const auto wanted = run(4, 900);
  EXPECT_EQ(idle_stats().traces_plain_window, 0);
  EXPECT_EQ(traces_.size(), 4u);
  options_.plain_fraction = 1;  // all but the first window of some seconds
  // What a window cuts short is a whole trace of a shorter request. (A window may begin between two
  // runs, or as one begins: then another engine is asked.)
  std::size_t shorter = 0;
  for (int engine = 0; engine < 4 && shorter == 0; ++engine) {
    engine_.reset();
    traces_.clear();
    start();
    int plain = 0;
    for (int i = 0; i < 2000 && plain < 2; ++i) {
      EXPECT_EQ(run(4, 900), wanted);
      plain += engine_->stats().net_speedup.plain_now;
    }
    const EngineStats before = idle_stats();
    ASSERT_TRUE(before.net_speedup.plain_now);
    EXPECT_GT(before.traces_plain_window, 0);
    const std::size_t traced = traces_.size();
    EXPECT_EQ(run(4, 900), wanted);
    const EngineStats after = idle_stats();
    EXPECT_EQ(after.acceptance.drafted, before.acceptance.drafted);
    EXPECT_EQ(traces_.size(), traced);
    for (const auto& trace : traces_) {
      EXPECT_FALSE(trace->gap);
      EXPECT_EQ(trace->tokens.size(), std::size_t(trace->n_prompt) + trace->generated.size());
      std::size_t emitted = 1;  // the first came with the prompt
      for (const RoundTrace& round : trace->rounds) emitted += std::size_t(round.accepted) + 1;
      EXPECT_GE(emitted, trace->generated.size());
      EXPECT_TRUE(parse_trace(serialize(*trace)));
      shorter += trace->generated.size() < 900;
    }
  }
  EXPECT_GT(shorter, 0u);
}

TEST_F(EngineSwap, TrafficStoresOutliveTheEngineByKey) {
  start();
  run(3, 50, "key-0000000a");
  run(2, 50, "key-0000000b");
  idle_stats();
  auto saved = engine_->save_traffic();
  ASSERT_EQ(saved.size(), 2u);
  const std::int64_t entries = engine_->stats().traffic_store_entries;
  EXPECT_GT(entries, 0);
  engine_.reset();
  start();
  saved.push_back({"key-0000000c", std::vector<std::byte>(100)});
  EXPECT_EQ(engine_->restore_traffic(saved).size(), 1u);  // the last is no store
  run(1, 1, "key-0000000a");
  EXPECT_GE(idle_stats().traffic_store_entries, entries);
  engine_->forget_traffic("key-0000000a");
  const auto left = engine_->save_traffic();
  ASSERT_EQ(left.size(), 1u);
  EXPECT_EQ(left[0].key_id, "key-0000000b");
}

}  // namespace
}  // namespace foretoken::testing
