// Prefix hits, preemption and room on a running engine: what is emitted, what is drafted and what
// is logged stay what they are without.
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <random>
#include <thread>

#include "foretoken/protocol/trace.h"
#include "tests/support/faulty_pages.h"
#include "tests/unit/engine/tiny_engine.h"

namespace foretoken::testing {
namespace {

class EnginePrefix : public TinyEngine {
 protected:
  static std::vector<TokenId> text(std::uint64_t seed, int n) {
    std::mt19937_64 random(seed);
    std::vector<TokenId> tokens;
    for (int i = 0; i < n; ++i) tokens.push_back(TokenId(random() % 250));
    return tokens;
  }
  static std::vector<TokenId> joined(std::span<const TokenId> a, const std::vector<TokenId>& b) {
    std::vector<TokenId> all(a.begin(), a.end());
    all.insert(all.end(), b.begin(), b.end());
    return all;
  }
  static HarnessRequest request(std::vector<TokenId> prompt, float temperature = 0,
                                int max_tokens = 40) {
    HarnessRequest r;
    r.prompt = std::move(prompt);
    r.sampling.temperature = temperature;
    r.sampling.seed = 4711;
    r.max_tokens = max_tokens;
    return r;
  }
  // A prompt that ends in every page, so that each border has its tail, each followed by one that
  // leaves it there; in between a long one that seals what others hold in 16 bits.
  std::vector<HarnessRequest> at_every_border(float temperature) const {
    const std::vector<TokenId> all = text(1, 800);
    const auto first = [&](int n) { return std::span(all).first(std::size_t(n)); };
    std::vector<HarnessRequest> requests;
    for (int border = 64; border <= 704; border += 64) {
      requests.push_back(request(joined(first(border), {5}), temperature, 1));
      if (border == 384) requests.push_back(request(all, temperature, 100));
      requests.push_back(request(joined(first(border), text(std::uint64_t(border), 30)),
                                 temperature, border > 250 && border < 400 ? 150 : 40));
    }
    return requests;
  }
};

TEST_F(EnginePrefix, OutputIsEqualAtEveryBorder) {
  for (const KvMode mode : {KvMode::kBf16, KvMode::kInt2}) {
    for (const float temperature : {0.0f, 0.8f}) {
      SCOPED_TRACE("mode " + std::to_string(int(mode)) + " T " + std::to_string(temperature));
      const auto requests = at_every_border(temperature);
      EngineOptions o = options();
      o.kv_cache_dtype = mode;
      o.kv_cache_memory = std::size_t(64) << 20;
      o.spec_type = spec_type("none");
      o.prefix_cache = false;
      const HarnessResult without = run_engine(models_, o, requests, 1);
      EXPECT_EQ(without.stats.prefix_cache_hits, 0);
      HarnessModels models = models_;
      models.learned = heads_[0];
      for (const bool speculation : {false, true}) {
        o.prefix_cache = true;
        o.spec_type = speculation ? spec_type("auto") : spec_type("none");
        o.spec_draft_n_fixed = speculation ? 4 : -1;
        o.max_batch_rows = speculation ? 64 : 256;
        const HarnessResult with = run_engine(models, o, requests, 1);
        EXPECT_EQ(with.outputs, without.outputs);
        std::int64_t border = 0;
        for (std::size_t i = 0; i < requests.size(); ++i) {
          if (requests[i].max_tokens == 1) border += 64;
          if (requests[i].prompt.size() < 800 && requests[i].max_tokens > 1) {
            EXPECT_EQ(with.cached[i], border);
          }
        }
        EXPECT_EQ(mode == KvMode::kInt2, with.stats.kv.sealed_page_reads_total > 0);
        EXPECT_EQ(speculation, with.stats.acceptance.accepted > 0);
        EXPECT_EQ(with.stats.kv.used_bytes, 0u);
        if (speculation) {
          EXPECT_GT(with.stats.draft_kv.cached_pages, 0);
          EXPECT_EQ(with.stats.draft_kv.used_bytes, 0u);
        }
      }
    }
  }
}

// The negative control of law 1: window pages read from their codes where 16 bits belong.
TEST_F(EnginePrefix, ResumingFromCodesIsCaught) {
  const std::vector<TokenId> system = text(3, 800);
  std::vector<HarnessRequest> requests{request(system, 0, 60)};
  for (std::uint64_t i = 0; i < 4; ++i)
    requests.push_back(request(joined(std::span(system).first(520), text(10 + i, 40)), 0.8f, 100));
  EngineOptions o = options();
  o.prefix_cache = false;
  const auto wanted = run_engine(models_, o, requests, 1).outputs;
  o.prefix_cache = true;
  const HarnessResult right = run_engine(models_, o, requests, 1);
  EXPECT_EQ(right.outputs, wanted);
  EXPECT_EQ(right.cached[1], 64);  // after the sink, which is always in 16 bits
  EXPECT_EQ(right.cached[2], 512);
  HarnessModels faulty = models_;
  faulty.model = with_faulty_pages(models_.model, PageFault::kResumeFromCodes);
  const HarnessResult wrong = run_engine(faulty, o, requests, 1);
  EXPECT_EQ(wrong.cached[2], 512);
  EXPECT_NE(wrong.outputs, wanted);
}

// Rounds after a hit are those without one: drafted ids, confidences, what was accepted; with the
// head, which needs the hidden states of the prompt's last position, and with a draft model, whose
// cache resumes too. Traces differ in where their hidden states begin, and in nothing else.
TEST_F(EnginePrefix, DraftsAndTracesAreWhatTheyAreWithout) {
  for (const SpecType spec : {spec_type("head"), spec_type("model")}) {
    for (const KvMode mode : {KvMode::kBf16, KvMode::kInt2}) {
      EngineOptions o = options();
      o.kv_cache_dtype = o.draft_kv_cache_dtype = mode;
      o.spec_type = spec;
      o.spec_draft_n_fixed = 4;
      HarnessModels models = models_;
      models.learned = heads_[1];
      const auto requests = at_every_border(0.8f);
      o.prefix_cache = false;
      const HarnessResult without = run_engine(models, o, requests, 1);
      o.prefix_cache = true;
      const HarnessResult with = run_engine(models, o, requests, 1);
      EXPECT_GT(with.stats.acceptance.accepted, 0);
      ASSERT_EQ(with.traces.size(), without.traces.size());
      const auto width = std::size_t(kHeadTaps * models_.model->config().hidden);
      int hits = 0;
      for (std::size_t i = 0; i < requests.size(); ++i) {
        const RequestTrace &got = *with.traces[i], &want = *without.traces[i];
        EXPECT_FALSE(got.gap);
        EXPECT_EQ(got.tokens, want.tokens);
        ASSERT_EQ(got.rounds.size(), want.rounds.size()) << i;
        for (std::size_t r = 0; r < got.rounds.size(); ++r) {
          EXPECT_EQ(got.rounds[r].start, want.rounds[r].start);
          EXPECT_EQ(got.rounds[r].drafted, want.rounds[r].drafted);
          EXPECT_EQ(got.rounds[r].confidences, want.rounds[r].confidences);
          EXPECT_EQ(got.rounds[r].accepted, want.rounds[r].accepted);
        }
        for (std::size_t g = 0; g < got.generated.size(); ++g) {
          EXPECT_EQ(got.generated[g].top_ids, want.generated[g].top_ids);
          EXPECT_EQ(got.generated[g].top_logits, want.generated[g].top_logits);
        }
        const std::int64_t cached = with.cached[i];
        hits += cached > 0;
        EXPECT_EQ(got.tap_first, std::max<std::int64_t>(want.tap_first, cached));
        EXPECT_LT(got.tap_first, got.n_prompt);  // what drafts and trains from the answer is there
        const std::int64_t skipped = got.tap_first - want.tap_first;
        ASSERT_EQ(got.tap_positions() + skipped, want.tap_positions());
        EXPECT_TRUE(std::ranges::equal(
            got.tap_values, std::span(want.tap_values).subspan(std::size_t(skipped) * width)));
        EXPECT_TRUE(std::ranges::equal(
            got.tap_scales, std::span(want.tap_scales).subspan(std::size_t(skipped) * kHeadTaps)));
        EXPECT_TRUE(parse_trace(serialize(got)));
      }
      EXPECT_GT(hits, 10);
    }
  }
}

// Hits, preemption and eviction at once: a pool that three of the eight fill, beginnings in common.
TEST_F(EnginePrefix, PreemptionAndHitsTogetherChangeNothing) {
  for (const KvMode mode : {KvMode::kBf16, KvMode::kInt2}) {
    std::vector<HarnessRequest> requests;
    for (int i = 0; i < 24; ++i) {
      const auto family = std::uint64_t(i % 3);
      HarnessRequest r = request(joined(text(family, 330), text(100 + std::uint64_t(i % 7), 50)),
                                 i % 2 ? 0.8f : 0.0f, 60 + 50 * (i % 5));
      requests.push_back(r);
    }
    EngineOptions o = options();
    o.kv_cache_dtype = mode;
    o.spec_type = spec_type("none");
    o.prefix_cache = false;
    o.kv_cache_memory = std::size_t(64) << 20;
    const auto wanted = run_engine(models_, o, requests, 1).outputs;
    o.prefix_cache = true;
    o.spec_type = spec_type("auto");
    o.spec_draft_n_fixed = 3;
    o.max_batch_rows = 64;
    const auto g = models_.model->kv_geometry();
    const std::size_t page =
        std::size_t(g.n_layers) * std::size_t(g.n_kv_heads) * std::size_t(g.head_dim) * 4 * 64;
    o.kv_cache_memory = page * (mode == KvMode::kBf16 ? 24 : 26);
    HarnessModels models = models_;
    models.learned = heads_[0];
    const HarnessResult got = run_engine(models, o, requests, 0);
    EXPECT_EQ(got.outputs, wanted);
    EXPECT_GT(got.stats.preemptions, 0) << "the pool was large enough: the test proves less";
    EXPECT_GT(got.stats.prefix_cache_hits, 0);
    EXPECT_GT(got.stats.kv.evicted_pages_total, 0);
    EXPECT_EQ(got.stats.kv.used_bytes, 0u);
    for (const auto& trace : got.traces) {
      EXPECT_EQ(trace->tap_first + trace->tap_positions(), std::int64_t(trace->tokens.size()) - 1);
      EXPECT_LT(trace->tap_first, trace->n_prompt);
    }
  }
}

// Who shares with whom: requests of one key, all keys only on purpose, those that opted out of
// traces with their own kind of the same key alone.
TEST_F(EnginePrefix, KeysAndOptedOutRequestsKeepToThemselves) {
  const auto of = [&](const std::string& key, bool trace) {
    HarnessRequest r = request(text(5, 200), 0, 4);
    r.key_id = key;
    r.trace = trace;
    return r;
  };
  const std::vector<HarnessRequest> requests{of("key-0000000a", true),  of("key-0000000a", true),
                                             of("key-0000000b", true),  of("", true),
                                             of("key-0000000a", false), of("key-0000000b", false),
                                             of("key-0000000b", false), of("key-0000000c", true)};
  EngineOptions o = options();
  using Cached = std::vector<std::int64_t>;
  EXPECT_EQ(run_engine(models_, o, requests, 1).cached, (Cached{0, 192, 0, 0, 0, 0, 192, 0}));
  o.share_across_keys = true;
  EXPECT_EQ(run_engine(models_, o, requests, 1).cached, (Cached{0, 192, 192, 192, 0, 0, 192, 192}));
}

class RunningEngine : public EnginePrefix {
 protected:
  void start(const EngineOptions& o) {
    auto engine =
        Engine::create(models_.model, models_.calibration, models_.draft, models_.draft_calibration,
                       o, [this](std::unique_ptr<RequestTrace>) { ++traces_; });
    ASSERT_TRUE(engine) << engine.error().message;
    engine_ = std::move(*engine);
  }
  RequestId submit(const HarnessRequest& request) {
    EngineRequest r;
    r.id = engine_->next_request_id();
    r.prompt = request.prompt;
    r.sampling = request.sampling;
    r.max_tokens = request.max_tokens;
    r.key_id = request.key_id;
    r.trace = request.trace;
    r.sink = [this](EngineEvent&& e) {
      std::lock_guard lock(mutex_);
      tokens_[e.request.value] += int(e.tokens.size());
      if (e.finish) {
        finished_[e.request.value] = *e.finish;
        cached_[e.request.value] = e.timings.cached_n;
      }
      changed_.notify_all();
    };
    const RequestId id = r.id;
    EXPECT_TRUE(engine_->submit(std::move(r)).ok());
    return id;
  }
  void wait_for(RequestId id, int tokens) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock,
                  [&] { return tokens_[id.value] >= tokens || finished_.contains(id.value); });
  }
  std::int64_t cached_after(const HarnessRequest& request) {
    const RequestId id = submit(request);
    wait_for(id, 1 << 30);
    return cached_[id.value];
  }
  EngineStats idle_stats() {
    for (int i = 0; i < 500 && !engine_->idle(); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    return engine_->stats();
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::uint64_t, int> tokens_;
  std::map<std::uint64_t, FinishReason> finished_;
  std::map<std::uint64_t, std::int64_t> cached_;
  std::atomic<int> traces_{0};
  std::unique_ptr<Engine> engine_;
};

TEST_F(RunningEngine, AnAbortedRequestIsNotKept) {
  start(options());
  const HarnessRequest long_one = request(text(1, 300), 0, 700);
  const RequestId id = submit(long_one);
  wait_for(id, 20);
  engine_->cancel(id);
  wait_for(id, 1 << 30);
  EXPECT_EQ(finished_[id.value], FinishReason::kAborted);
  const EngineStats stats = idle_stats();
  EXPECT_EQ(stats.kv.cached_pages, 0);
  EXPECT_EQ(stats.draft_kv.cached_pages, 0);
  EXPECT_EQ(cached_after(request(text(1, 300), 0, 3)), 0);
  EXPECT_EQ(cached_after(request(text(1, 300), 0, 3)), 256);
}

// A stop string ended it: its client has all it wanted, so it is whole.
TEST_F(RunningEngine, AStoppedRequestIsKeptAndTraced) {
  start(options());
  const RequestId id = submit(request(text(1, 300), 0, 700));
  wait_for(id, 20);
  engine_->stop(id);
  wait_for(id, 1 << 30);
  EXPECT_EQ(finished_[id.value], FinishReason::kStop);
  EXPECT_EQ(cached_after(request(text(1, 300), 0, 3)), 256);
  EXPECT_EQ(idle_stats().requests_aborted, 0);
  EXPECT_EQ(traces_, 2);
}

TEST_F(RunningEngine, ForgottenPagesAreGoneAndThoseUnderWayAreNotKept) {
  start(options());
  HarnessRequest a = request(text(1, 300), 0, 3), b = a;
  a.key_id = "key-0000000a";
  b.key_id = "key-0000000b";
  cached_after(a);
  cached_after(b);
  HarnessRequest under_way = a;
  under_way.max_tokens = 600;
  const RequestId id = submit(under_way);
  wait_for(id, 10);
  engine_->forget_traffic("key-0000000a");
  wait_for(id, 1 << 30);
  EXPECT_EQ(finished_[id.value], FinishReason::kLength);
  EXPECT_EQ(cached_[id.value], 256);
  EXPECT_EQ(cached_after(a), 0);
  EXPECT_EQ(cached_after(b), 256);
  HarnessRequest untraced = a;
  untraced.trace = false;
  cached_after(untraced);
  EXPECT_EQ(cached_after(untraced), 256);
  engine_->forget_traffic("key-0000000a");
  EXPECT_EQ(cached_after(untraced), 0);
}

// Clients that leave at random moments: nothing of theirs stays in use, and nothing is lost.
TEST_F(RunningEngine, AnAbortStormConservesPages) {
  EngineOptions o = options();
  o.spec_draft_n_fixed = 3;
  o.max_batch_rows = 64;
  o.max_queue = 1000;
  const auto g = models_.model->kv_geometry();
  o.kv_cache_memory =
      std::size_t(g.n_layers) * std::size_t(g.n_kv_heads) * std::size_t(g.head_dim) * 4 * 64 * 30;
  start(o);
  std::mt19937_64 random(3);
  std::vector<RequestId> ids;
  for (int i = 0; i < 120; ++i) {
    ids.push_back(submit(
        request(joined(text(random() % 3, 100 + int(random() % 4) * 128), text(random() % 5, 40)),
                0.8f, 5 + int(random() % 80))));
    if (random() % 3 != 0) engine_->cancel(ids[random() % ids.size()]);
    if (random() % 4 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(random() % 8));
  }
  for (const RequestId id : ids) wait_for(id, 1 << 30);
  int aborted = 0;
  for (const RequestId id : ids) aborted += finished_[id.value] == FinishReason::kAborted;
  EXPECT_GT(aborted, 10);
  EXPECT_LT(aborted, 115);
  const EngineStats stats = idle_stats();
  EXPECT_EQ(stats.kv.used_bytes, 0u);
  EXPECT_EQ(stats.draft_kv.used_bytes, 0u);
  EXPECT_GT(stats.prefix_cache_hits, 0);
  engine_->forget_traffic("");
  submit(request({1, 2, 3}, 0, 1));
  const EngineStats after = idle_stats();
  EXPECT_EQ(after.kv.cached_bytes, 0u);
  EXPECT_EQ(after.draft_kv.cached_bytes, 0u);
}

// The whole pool, and one token more.
TEST_F(RunningEngine, ARequestAsLargeAsThePoolRunsAndALargerOneIsRefusedWithBothSizes) {
  for (const KvMode mode : {KvMode::kBf16, KvMode::kInt2}) {
    EngineOptions o = options();
    o.kv_cache_dtype = mode;
    o.max_batch_rows = 64;
    o.max_num_seqs = 2;
    o.spec_draft_n_max = 4;
    const auto g = models_.model->kv_geometry();
    o.kv_cache_memory = std::size_t(g.n_layers) * std::size_t(g.n_kv_heads) *
                        std::size_t(g.head_dim) * 4 * 64 * (mode == KvMode::kBf16 ? 9 : 10);
    start(o);
    std::string refusal;
    int largest = 1024;
    for (; largest > 0; --largest) {
      EngineRequest r;
      r.id = engine_->next_request_id();
      r.prompt = text(1, largest - 40);
      r.max_tokens = 40;
      r.sink = [](EngineEvent&&) {};
      const RequestId id = r.id;
      const Status status = engine_->submit(std::move(r));
      if (status.ok()) {
        engine_->cancel(id);
        break;
      }
      EXPECT_EQ(status.error().code, ErrorCode::kOutOfRange);
      refusal = status.error().message;
    }
    EXPECT_GT(largest, 400);
    EXPECT_LT(largest, 1000) << "the pool was large enough: the test proves less";
    EXPECT_NE(refusal.find(std::to_string(largest + 1)), std::string::npos) << refusal;
    EXPECT_NE(refusal.find(std::to_string(largest) + " tokens"), std::string::npos) << refusal;
    EXPECT_EQ(engine_->options().max_model_len, largest) << "the context served is what fits";
    submit(request(text(3, 200), 0, 30));
    const RequestId id = submit(request(text(1, largest - 40), 0.8f, 40));
    submit(request(text(2, 200), 0, 30));
    wait_for(id, 1 << 30);
    EXPECT_EQ(finished_[id.value], FinishReason::kLength);
    EXPECT_EQ(tokens_[id.value], 40);
    engine_.reset();
  }
}

}  // namespace
}  // namespace foretoken::testing
