// The seam for devices: the whole engine on a device whose memory the host may not touch
// (guarded_device.h) emits and logs what it does on the CPU.
#include <gtest/gtest.h>

#include "foretoken/protocol/trace.h"
#include "runtime/evaluate/needles.h"
#include "runtime/evaluate/quality.h"
#include "runtime/evaluate/tap_check.h"
#include "tests/support/guarded_device.h"
#include "tests/unit/engine/tiny_engine.h"

namespace foretoken::testing {
namespace {

class GuardedEngine : public TinyEngine {
 protected:
  void SetUp() override {
    TinyEngine::SetUp();
    memory_ = std::make_shared<GuardedMemory>();
  }
  static EngineOptions options() {
    EngineOptions o = TinyEngine::options();
    o.kv_cache_memory = std::size_t(16) << 20;
    o.max_batch_rows = 64;
    return o;
  }
  // Everything that a request can ask for, past position 384, where pages are read sealed.
  static std::vector<HarnessRequest> requests() {
    std::vector<HarnessRequest> requests;
    for (int i = 0; i < 4; ++i) {
      HarnessRequest r;
      r.prompt = prompt(360 + 17 * i, i);
      r.sampling.temperature = i % 2 ? 0.8f : 0.0f;
      r.sampling.seed = 5 + std::uint64_t(i);
      if (i == 1) r.sampling.top_p = 0.9f;
      if (i == 2) r.sampling.repetition_penalty = 1.2f;
      if (i == 3) r.sampling.logit_bias = {{7, 2.0f}};
      r.trace = i != 1;
      r.max_tokens = 50;
      requests.push_back(r);
    }
    return requests;
  }
  HarnessModels guarded(HarnessModels models, GuardedFault fault = GuardedFault::kNone) const {
    models.model = on_guarded_device(models.model, memory_, fault);
    if (models.draft) models.draft = on_guarded_device(models.draft, memory_, fault);
    return models;
  }
  // `there` is `models` elsewhere.
  void expect_equal(const HarnessModels& models, const HarnessModels& there, const EngineOptions& o,
                    const std::vector<HarnessRequest>& requests, HarnessResult* out = nullptr,
                    int in_flight = 2) {
    HarnessResult want = run_engine(models, o, requests, in_flight);
    const std::int64_t before = memory_->operations();
    HarnessResult got = run_engine(there, o, requests, in_flight);
    EXPECT_GT(memory_->operations(), before + 100);
    EXPECT_EQ(got.outputs, want.outputs);
    const auto by_request = [](const auto& a, const auto& b) {
      return a->request.value < b->request.value;
    };
    std::ranges::sort(want.traces, by_request);
    std::ranges::sort(got.traces, by_request);
    ASSERT_EQ(got.traces.size(), want.traces.size());
    for (std::size_t i = 0; i < want.traces.size(); ++i) {
      const RequestTrace &a = *got.traces[i], &b = *want.traces[i];
      EXPECT_EQ(a.tap_values, b.tap_values);
      EXPECT_EQ(a.tap_scales, b.tap_scales);
      ASSERT_EQ(a.generated.size(), b.generated.size());
      for (std::size_t t = 0; t < b.generated.size(); ++t) {
        EXPECT_EQ(a.generated[t].top_ids, b.generated[t].top_ids);
        EXPECT_EQ(a.generated[t].top_logits, b.generated[t].top_logits);
        EXPECT_EQ(a.generated[t].log_sum_exp, b.generated[t].log_sum_exp);
        EXPECT_EQ(a.generated[t].logprob, b.generated[t].logprob);
      }
    }
    if (out) *out = std::move(got);
  }
  std::shared_ptr<GuardedMemory> memory_;
};

TEST_F(GuardedEngine, SpeculationOnAndOffIsAsOnTheCpu) {
  for (const SpecType spec :
       {spec_type("none"), spec_type("ngram"), spec_type("model"), spec_type("auto")}) {
    SCOPED_TRACE(spec.name);
    EngineOptions o = options();
    o.spec_type = spec;
    o.spec_draft_n_fixed = spec == spec_type("none") ? -1 : 3;
    HarnessResult got;
    expect_equal(models_, guarded(models_), o, requests(), &got);
    EXPECT_GT(got.stats.kv.sealed_page_reads_total, 0);
    EXPECT_EQ(got.stats.acceptance.drafted > 0, spec != spec_type("none"));
  }
}

TEST_F(GuardedEngine, HeadsAndTheirSwapsAreAsOnTheCpu) {
  for (const auto& learned : {heads_[0], eagle_}) {
    EngineOptions o = options();
    o.spec_type = spec_type("head");
    o.spec_draft_n_fixed = 3;
    HarnessModels models = models_;
    models.learned = learned;
    models.canary = heads_[1];
    models.canary_fraction = 0.5;
    HarnessResult got;
    expect_equal(models, guarded(models), o, requests(), &got);
    EXPECT_GT(got.stats.acceptance.drafted, 0);
    models.swap_every_rounds = 5;
    models.swap_to = {heads_[0], eagle_, heads_[1]};
    expect_equal(models, guarded(models), o, requests());
  }
}

TEST_F(GuardedEngine, RejectionSamplingTakesItsRowsToTheHost) {
  EngineOptions o = options();
  o.spec_type = spec_type("model");
  o.spec_sampling = SpecSampling::kRejection;
  o.spec_draft_n_fixed = 3;
  expect_equal(models_, guarded(models_), o, requests());
}

TEST_F(GuardedEngine, ADraftModelMayLiveElsewhere) {
  EngineOptions o = options();
  o.spec_type = spec_type("model");
  o.spec_draft_n_fixed = 3;
  HarnessModels target = guarded(models_), draft = target;
  target.draft = models_.draft;
  draft.model = models_.model;
  expect_equal(models_, target, o, requests());
  expect_equal(models_, draft, o, requests());
}

TEST_F(GuardedEngine, PrefixHitsAndPreemptionAreAsOnTheCpu) {
  EngineOptions o = options();
  o.spec_type = spec_type("auto");
  o.spec_draft_n_fixed = 3;
  HarnessModels models = models_;
  models.learned = heads_[0];
  std::vector<HarnessRequest> twice = requests();
  for (const HarnessRequest& r : requests()) twice.push_back(r);
  HarnessResult got;
  // One after the other: what is found, and so where a trace's hidden states begin, is then
  // certain.
  expect_equal(models, guarded(models), o, twice, &got, 1);
  EXPECT_GT(got.cached.back(), 0);
  // Two requests do not fit together.
  const auto geometry = models_.model->kv_geometry();
  o.kv_cache_memory = kernels::hot_page_bytes(geometry.head_dim) *
                      std::size_t(geometry.n_layers * geometry.n_kv_heads) * 11;
  o.prefix_cache = false;
  o.kv_cache_dtype = o.draft_kv_cache_dtype = KvMode::kBf16;
  expect_equal(models, guarded(models), o, requests(), &got);
  EXPECT_GT(got.stats.preemptions, 0);
}

// Quality, needles and the tap check read rows and hidden states through the seam.
TEST_F(GuardedEngine, MeasurementsAreAsOnTheCpu) {
  kernels::ThreadPool pool(2);
  const auto there = on_guarded_device(models_.model, memory_);
  const std::vector<TokenId> text = prompt(600);
  const KvQualityWindow window{"text", text};
  const KvQualityCase int2{"int2", KvMode::kInt2, models_.calibration};
  KvQualityOptions options;
  options.timed_steps = 1;
  const auto quality = [&](const Model& model) {
    const auto measured =
        measure_kv_quality(model, std::span(&window, 1), std::span(&int2, 1), options, pool, {});
    EXPECT_TRUE(measured) << measured.error().message;
    return std::pair{(*measured)[1].all.perplexity, (*measured)[1].all.kl.value};
  };
  EXPECT_EQ(quality(*there), quality(*models_.model));
  NeedleContext needles;
  needles.tokens = text;
  needles.questions.push_back({prompt(8, 3), prompt(2, 5), 0});
  const auto found = [&](const Model& model) {
    const auto measured =
        measure_needles(model, std::span(&needles, 1), std::span(&int2, 1), {}, pool, nullptr);
    EXPECT_TRUE(measured) << measured.error().message;
    return measured->found;
  };
  EXPECT_EQ(found(*there), found(*models_.model));
  const auto taps = [&](const Model& model) {
    const auto checked = check_taps(model, *eagle_->head, std::span(text).first(300), pool);
    EXPECT_TRUE(checked) << checked.error().message;
    std::vector<std::vector<bool>> right;
    for (const auto& shift : checked->shifts) right.push_back(shift.right);
    return right;
  };
  EXPECT_EQ(taps(*there), taps(*models_.model));
}

// Negative controls: the guard sees a host access, whoever makes it.
using GuardedEngineDeathTest = GuardedEngine;

TEST_F(GuardedEngineDeathTest, AHostAccessEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  auto* values = static_cast<float*>(memory_->allocate(64, 64));
  {
    const GuardedMemory::Operation operation(*memory_);
    values[3] = 1;
  }
  EXPECT_DEATH(values[3] = 2, "host access to device memory");
  EngineOptions o = options();
  o.spec_type = spec_type("model");
  o.spec_sampling = SpecSampling::kRejection;
  EXPECT_DEATH(run_engine(guarded(models_, GuardedFault::kRowsLeak), o, requests(), 2),
               "host access to device memory");
  o.spec_sampling = SpecSampling::kInvariant;
  EXPECT_DEATH(run_engine(guarded(models_, GuardedFault::kFeaturesLeak), o, requests(), 2),
               "host access to device memory");
}

}  // namespace
}  // namespace foretoken::testing
