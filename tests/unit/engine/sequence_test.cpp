// What a sequence must be between two rounds, and that each invariant's breach is named.
#include "runtime/engine/sequence.h"

#include <gtest/gtest.h>

namespace foretoken {
namespace {

class SequenceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    KvOptions options;
    options.mode = KvMode::kBf16;
    options.memory_bytes = 8 << 20;
    options.max_model_len = 256;
    auto cache = KvCache::create({1, 1, 1, 64}, options, nullptr);
    ASSERT_TRUE(cache) << cache.error().message;
    std::vector<std::unique_ptr<KvCache>> classes;
    classes.push_back(std::move(*cache));
    memory_ = std::make_unique<SequenceMemory>(std::move(classes));
  }
  // A prompt of three and two tokens of output, of which so many positions are in memory; changed.
  std::string broken(const std::function<void(Sequence&)>& change, std::int64_t computed = 4) {
    Sequence s;
    s.request.prompt = {5, 6, 7};
    s.request.max_tokens = 4;
    s.tokens = {5, 6, 7, 1, 2};
    s.n_prompt = 3;
    s.slot = 0;
    s.memory = memory_.get();
    const KvSequence kv = memory_->open().value();
    s.kv = kv;
    EXPECT_TRUE(memory_->reserve(kv, 64));
    memory_->commit(kv, computed);
    change(s);
    const char* what = s.broken();
    memory_->close(kv);
    return what ? what : "";
  }
  std::unique_ptr<SequenceMemory> memory_;
};

TEST_F(SequenceTest, WhatARoundLeavesHolds) {
  const auto as_it_is = [](Sequence&) {};
  EXPECT_EQ(broken(as_it_is), "");
  EXPECT_EQ(broken(as_it_is, 1), "");                                 // preempted, recomputing
  EXPECT_EQ(broken([](Sequence& s) { s.tokens.resize(3); }, 2), "");  // prefilling
  EXPECT_EQ(broken([](Sequence& s) { s.slot = s.kv = -1; }), "");     // waiting
}

TEST_F(SequenceTest, EveryBreachIsNamed) {
  EXPECT_EQ(broken([](Sequence& s) { s.tokens[1] = 9; }), "tokens = prompt then output");
  EXPECT_EQ(broken([](Sequence& s) { s.n_prompt = 2; }), "tokens = prompt then output");
  EXPECT_EQ(broken([](Sequence&) {}, 6), "computed() <= tokens.size()");
  EXPECT_EQ(broken([](Sequence& s) { s.kv = -1; }), "a slot goes with a KV sequence");
  EXPECT_EQ(broken([](Sequence&) {}, 5), "it decodes once its prefill has ended");
  EXPECT_EQ(broken([](Sequence& s) { s.request.max_tokens = 1; }),
            "no more output than was asked for");
}

}  // namespace
}  // namespace foretoken
