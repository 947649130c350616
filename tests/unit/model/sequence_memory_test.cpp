// After commit(n) memory equals that of a plain run of n tokens: through a model's forward pass,
// and over several page classes.
#include "runtime/model/sequence_memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "runtime/model/model.h"
#include "tests/support/gguf_writer.h"

namespace foretoken::testing {
namespace {

using Tokens = std::vector<TokenId>;

Tokens text(std::uint64_t seed, int n) {
  std::mt19937_64 random(seed);
  Tokens tokens;
  for (int i = 0; i < n; ++i) tokens.push_back(TokenId(random() % 250));
  return tokens;
}

class MemoryOfAModel : public ::testing::TestWithParam<KvMode> {
 protected:
  void SetUp() override {
    TinyModelOptions tiny;
    tiny.n_layers = 2;
    tiny.n_heads = 2;
    tiny.n_kv_heads = 1;
    tiny.hidden = tiny.ffn = 64;
    write_tiny_model(folder_.file("m.gguf"), tiny);
    ModelLoadOptions load;
    load.threads = 1;
    auto model = Model::load(folder_.file("m.gguf"), load);
    ASSERT_TRUE(model) << model.error().message;
    model_ = *model;
    auto memory = model_->make_memory({.mode = GetParam(),
                                       .sink_tokens = 64,
                                       .window_tokens = 64,
                                       .memory_bytes = std::size_t{32} << 20,
                                       .max_sequences = 2,
                                       .max_rows = 64,
                                       .max_model_len = 1024},
                                      KvCalibration::data_free(model_->kv_geometry()));
    ASSERT_TRUE(memory) << memory.error().message;
    memory_ = std::move(*memory);
    workspace_ = model_->make_workspace(64, 1);
    logits_ = model_->make_logit_rows(1);
  }
  // Rows of `tokens` after what is committed, not committed themselves; the last one's logits.
  std::vector<float> run(KvSequence s, const Tokens& tokens) {
    const std::int64_t first = memory_->length(s);
    EXPECT_TRUE(memory_->reserve(s, first + std::ssize(tokens)));
    const KvRows rows{s, first, int(tokens.size()), 0};
    const int last = int(tokens.size()) - 1;
    ForwardBatch batch;
    batch.tokens = tokens;
    batch.sequences = {&rows, 1};
    batch.logit_rows = {&last, 1};
    batch.logits = logits_.get();
    model_->forward(batch, *memory_, *workspace_, pool_);
    const std::span<const float> row = logits_->host_row(0);
    return {row.begin(), row.end()};
  }
  TemporaryDirectory folder_;
  std::shared_ptr<const Model> model_;
  std::unique_ptr<SequenceMemory> memory_;
  std::unique_ptr<ForwardWorkspace> workspace_;
  std::unique_ptr<LogitRows> logits_;
  kernels::ThreadPool pool_{1};
};
INSTANTIATE_TEST_SUITE_P(Modes, MemoryOfAModel, ::testing::Values(KvMode::kBf16, KvMode::kInt2),
                         [](const auto& info) { return std::string(kv_mode_name(info.param)); });

TEST_P(MemoryOfAModel, RejectedRowsLeaveNoTrace) {
  const Tokens tokens = text(1, 400);
  const KvSequence plain = memory_->open().value(), drafted = memory_->open().value();
  std::mt19937_64 random(2);
  for (std::int64_t n = 0; n + 10 < std::ssize(tokens);) {
    // Up to nine rows, of which some tokens are right and the rest, perhaps none, are wrong.
    const int right = 1 + int(random() % 5), wrong = int(random() % 5);
    Tokens rows(tokens.begin() + n, tokens.begin() + n + right + wrong);
    for (int i = right; i < right + wrong; ++i)
      rows[std::size_t(i)] = (rows[std::size_t(i)] + 7) % 250;
    run(drafted, rows);
    memory_->commit(drafted, n + right);
    for (int i = 0; i < right; ++i) {
      run(plain, {tokens[std::size_t(n + i)]});
      memory_->commit(plain, n + i + 1);
    }
    n += right;
    ASSERT_EQ(memory_->length(drafted), n);
    ASSERT_EQ(memory_->length(plain), n);
    const Tokens next{tokens[std::size_t(n)]};
    ASSERT_EQ(run(drafted, next), run(plain, next)) << "after " << n;
  }
  EXPECT_EQ(memory_->stats().sealed_pages_total > 0, GetParam() != KvMode::kBf16);
}

// Negative control: a rejected row that is committed all the same is seen by the next.
TEST_P(MemoryOfAModel, ACommittedWrongRowIsSeen) {
  const Tokens tokens = text(1, 20);
  const KvSequence plain = memory_->open().value(), drafted = memory_->open().value();
  Tokens wrong = tokens;
  wrong.back() = (wrong.back() + 7) % 250;
  run(plain, tokens);
  run(drafted, wrong);
  memory_->commit(plain, 20);
  memory_->commit(drafted, 20);
  EXPECT_NE(run(drafted, {5}), run(plain, {5}));
}

// Two classes of other geometries, of which the second keeps fewer tails: a sequence resumes where
// both can, and both are then as far.
TEST(MemoryOfClasses, ResumesWhereAllOfThemCan) {
  const KvGeometry wide{.n_layers = 2, .n_heads = 2, .n_kv_heads = 2, .head_dim = 32},
      narrow{.n_layers = 1, .n_heads = 1, .n_kv_heads = 1, .head_dim = 16};
  kernels::ThreadPool pool(1);
  const auto make = [&](const KvGeometry& g, std::size_t tail_slabs) {
    const std::size_t slab =
        kernels::hot_page_bytes(g.head_dim) * std::size_t(g.n_layers) * std::size_t(g.n_kv_heads);
    auto cache = KvCache::create(g,
                                 {.mode = KvMode::kInt2,
                                  .sink_tokens = 64,
                                  .window_tokens = 64,
                                  .memory_bytes = slab * 60,
                                  .max_sequences = 2,
                                  .max_rows = 64,
                                  .max_model_len = 1024,
                                  .tail_bytes = slab * tail_slabs},
                                 KvCalibration::data_free(g));
    EXPECT_TRUE(cache) << cache.error().message;
    return std::move(*cache);
  };
  std::vector<std::unique_ptr<KvCache>> classes;
  classes.push_back(make(wide, 20));
  classes.push_back(make(narrow, 2));
  SequenceMemory memory(std::move(classes));
  const auto fill = [&](KvSequence s, std::int64_t from, std::int64_t to) {
    for (std::int64_t at = from; at < to; at += 64) {
      EXPECT_TRUE(memory.reserve(s, at + 64));
      const KvRows rows{s, at, 64, 0};
      for (int c = 0; c < 2; ++c) {
        const KvGeometry& g = c == 0 ? wide : narrow;
        const std::int64_t width = g.n_kv_heads * g.head_dim;
        std::vector<float> x(std::size_t(64 * width), 0.5f), out(x.size());
        for (int l = 0; l < g.n_layers; ++l) {
          memory.cache(c).store(l, {&rows, 1}, x.data(), width, x.data(), width);
          memory.cache(c).attend(l, {&rows, 1}, x.data(), width, out.data(), width, 1.0f, pool);
        }
      }
      memory.commit(s, at + 64);
    }
  };
  const auto chain_of = [](const Tokens& tokens) {
    PageChain chain(hash_bytes("a"), 1, 1024);
    chain.extend(tokens);
    return chain;
  };
  // Three requests that begin alike and end at later and later borders.
  const Tokens tokens = text(3, 640);
  for (const int n : {256, 448, 640}) {
    const KvSequence s = memory.open().value();
    const PageChain chain = chain_of({tokens.begin(), tokens.begin() + n});
    const std::int64_t found = memory.resume(s, chain, n, n - 1);
    for (int c = 0; c < 2; ++c) EXPECT_EQ(memory.cache(c).committed(s), found);
    EXPECT_EQ(memory.length(s), found);
    fill(s, found, n);
    memory.close_and_keep(s, chain);
    EXPECT_EQ(memory.validate(), "");
  }
  // Each alone goes further than both together, or the test shows nothing.
  const KvSequence s = memory.open().value();
  const PageChain chain = chain_of(tokens);
  const std::int64_t together = memory.resume(s, chain, 640, 448 + 63);
  memory.close(s);
  std::int64_t alone[2];
  for (int c = 0; c < 2; ++c) {
    const KvSequence one = memory.cache(c).open().value();
    alone[c] = memory.cache(c).resume(one, chain, 640, 448 + 63);
    memory.cache(c).close(one);
  }
  EXPECT_EQ(alone[0], 448);
  EXPECT_LT(alone[1], 448);
  EXPECT_LE(together, alone[1]);
  EXPECT_EQ(memory.validate(), "");
}

}  // namespace
}  // namespace foretoken::testing
