// What a sequence must be between two rounds, and that each invariant's breach is named.
#include "runtime/engine/sequence.h"

#include <gtest/gtest.h>

namespace foretoken {
namespace {

// A prompt of three and two tokens of output, the last without KV.
Sequence decoding() {
  Sequence s;
  s.request.prompt = {5, 6, 7};
  s.request.max_tokens = 4;
  s.tokens = {5, 6, 7, 1, 2};
  s.n_prompt = 3;
  s.computed = 4;
  s.slot = 0;
  s.kv = 0;
  return s;
}

std::string broken(const std::function<void(Sequence&)>& change) {
  Sequence s = decoding();
  change(s);
  return s.broken() ? s.broken() : "";
}

TEST(Sequence, WhatARoundLeavesHolds) {
  EXPECT_EQ(broken([](Sequence&) {}), "");
  // Prefilling; preempted and recomputing; preempted and waiting.
  EXPECT_EQ(broken([](Sequence& s) { s.tokens.resize(3), s.computed = 2; }), "");
  EXPECT_EQ(broken([](Sequence& s) { s.computed = 1; }), "");
  EXPECT_EQ(broken([](Sequence& s) { s.slot = s.kv = -1, s.computed = 0; }), "");
}

TEST(Sequence, EveryBreachIsNamed) {
  EXPECT_EQ(broken([](Sequence& s) { s.tokens[1] = 9; }), "tokens = prompt then output");
  EXPECT_EQ(broken([](Sequence& s) { s.n_prompt = 2; }), "tokens = prompt then output");
  EXPECT_EQ(broken([](Sequence& s) { s.computed = 6; }), "computed <= tokens.size()");
  EXPECT_EQ(broken([](Sequence& s) { s.kv = -1; }), "a slot goes with a KV sequence");
  EXPECT_EQ(broken([](Sequence& s) { s.slot = s.kv = -1; }), "what is computed is in the KV");
  EXPECT_EQ(broken([](Sequence& s) { s.computed = 5; }), "it decodes once its prefill has ended");
  EXPECT_EQ(broken([](Sequence& s) { s.request.max_tokens = 1; }),
            "no more output than was asked for");
}

}  // namespace
}  // namespace foretoken
