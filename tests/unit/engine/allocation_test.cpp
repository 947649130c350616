// A round of a warm engine allocates nothing, neither on the engine's thread nor on the workers of
// its pool: every operator new of this program is counted while the core runs its rounds.
#include <gtest/gtest.h>

#include "runtime/engine/core.h"
#include "tests/support/count_allocations.h"
#include "tests/unit/engine/tiny_engine.h"

namespace foretoken::testing {
namespace {

class EngineAllocation : public TinyEngine {
 protected:
  struct Kinds {
    std::int64_t rounds = 0, allocated = 0, drafted = 0, traces = 0;
    EngineStats stats;
  };

  // Sequences of three kinds, greedy, sampled and sampled with penalties and biases; what is
  // counted begins when all of them decode and ends before the first of them does.
  Kinds run(EngineOptions o, std::shared_ptr<const LearnedWeights> learned, int n_sequences = 3) {
    Kinds out;
    o.threads = 2;
    o.control_fraction = 0.1;
    auto core = EngineCore::create(
        models_.model, models_.calibration, nullptr, nullptr, o,
        [&](std::unique_ptr<RequestTrace>) { ++out.traces; }, system_clock());
    EXPECT_TRUE(core) << core.error().message;
    if (!core) return out;
    EngineCore& engine = **core;
    if (learned) {
      std::vector<LearnedPointer> retired;
      engine.set_learned({learned, nullptr, 0}, retired);
    }
    std::vector<std::int64_t> emitted(std::size_t(n_sequences), 0);
    bool ended = false;
    for (std::size_t i = 0; i < emitted.size(); ++i) {
      EngineRequest r;
      r.id = RequestId{i + 1};
      r.prompt = prompt(90 + 40 * int(i % 3), int(i));
      r.max_tokens = 400;
      r.sampling.temperature = i % 3 == 0 ? 0.0f : 0.8f;
      r.sampling.seed = 7 + i;
      if (i % 3 == 2) {
        r.sampling.frequency_penalty = 0.2f;
        r.sampling.logit_bias = {{5, 1.5f}, {9, -2.0f}};
      }
      r.domain = "a domain whose name is longer than any string keeps inside itself";
      r.sink = [&emitted, &ended, i](EngineEvent&& event) {
        emitted[i] += std::int64_t(event.tokens.size());
        ended |= event.finish.has_value();
      };
      engine.enqueue(engine.sequence_of(std::move(r)));
    }
    const auto fewest = [&] { return *std::ranges::min_element(emitted); };
    const auto most = [&] { return *std::ranges::max_element(emitted); };
    while (fewest() < 40) engine.round();
    const std::int64_t before = allocations;
    for (; most() < 370; ++out.rounds) engine.round();
    out.allocated = allocations - before;
    EXPECT_FALSE(ended);
    engine.fill(out.stats);
    while (engine.has_work()) engine.round();
    EXPECT_EQ(out.traces, n_sequences);
    return out;
  }
};

TEST_F(EngineAllocation, AWarmRoundAllocatesNothing) {
  for (const KvMode mode : {KvMode::kBf16, KvMode::kInt2}) {
    for (const bool head : {false, true}) {
      for (const int fixed : {-1, 4}) {
        EngineOptions o = options();
        o.kv_cache_dtype = mode;
        o.spec_type = head ? spec_type("auto") : spec_type("ngram");
        o.spec_draft_n_fixed = fixed;
        const Kinds ran = run(o, head ? heads_[0] : nullptr);
        EXPECT_EQ(ran.allocated, 0)
            << "in " << ran.rounds << " rounds, kv " << kv_mode_name(mode)
            << (head ? ", head" : ", ngram") << (fixed < 0 ? ", by cost" : ", fixed length");
        EXPECT_GT(ran.rounds, 50);
        EXPECT_GT(ran.stats.control_rounds, 0);
        if (fixed < 0) continue;
        EXPECT_GT(ran.stats.by_kind.at(head ? "head" : "ngram").drafted, 50);
      }
    }
  }
  // EAGLE-3's is another head.
  EngineOptions o = options();
  o.spec_draft_n_fixed = 3;
  const Kinds ran = run(o, eagle_);
  EXPECT_EQ(ran.allocated, 0) << "in " << ran.rounds << " rounds with EAGLE-3's head";
  EXPECT_GT(ran.stats.by_kind.at("head").drafted, 50);
}

// What a round keeps of its sequences has room for as many as may run.
TEST_F(EngineAllocation, ARoundOfManySequencesAllocatesNothing) {
  EngineOptions o = options();
  o.max_num_seqs = 12;
  EXPECT_EQ(run(o, heads_[0], o.max_num_seqs).allocated, 0);
}

// Negative control: the counter counts.
TEST_F(EngineAllocation, OneAllocationIsCounted) {
  const std::int64_t before = allocations;
  const auto kept = std::make_unique<int>(1);
  EXPECT_EQ(allocations - before, 1) << *kept;
}

}  // namespace
}  // namespace foretoken::testing
