// The engine on a small random model: every speculator and both sampling rules, cancellation,
// limits.
#include "runtime/engine/engine.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>

#include <algorithm>
#include <array>
#include <cmath>
#include <condition_variable>
#include <mutex>
#include <random>
#include <thread>

#include "foretoken/kernels/isa.h"
#include "runtime/evaluate/portfolio_replay.h"
#include "runtime/model/arch/architecture.h"
#include "runtime/model/feature_rows.h"
#include "runtime/speculate/speculator.h"
#include "tests/support/faulty_logits.h"
#include "tests/unit/engine/tiny_engine.h"

namespace foretoken::testing {
namespace {

// Nobody drafts trees yet: branches are put beside what was drafted, at random, so that the chain's
// own nodes lie anywhere among them. Law 1 holds, what was accepted of the chains still is, and the
// features that are logged are those of the path.
TEST_F(TinyEngine, TreesOfDraftsEmitWhatNoneEmits) {
  for (const KvMode mode : {KvMode::kBf16, KvMode::kInt2}) {
    for (const float temperature : {0.0f, 0.8f}) {
      std::vector<HarnessRequest> requests;
      for (int i = 0; i < 3; ++i) {
        HarnessRequest r;
        r.prompt = prompt(310 + 23 * i, i);
        r.sampling.temperature = temperature;
        r.sampling.seed = 99 + std::uint64_t(i);
        if (i == 2) r.sampling.frequency_penalty = 0.4f;
        r.max_tokens = 160;
        requests.push_back(r);
      }
      EngineOptions o = options();
      o.kv_cache_dtype = mode;
      o.spec_type = spec_type("none");
      const auto wanted = run_engine(models_, o, requests, 1);
      o.spec_type = spec_type("auto");
      o.spec_draft_n_fixed = 4;
      o.spec_draft_n_max = 14;
      const auto chains = run_engine(models_, o, requests, 1);
      std::mt19937_64 random(4);
      std::int64_t trees = 0;
      o.on_drafted = [&](std::span<DraftJob> jobs) {
        for (DraftJob& job : jobs) {
          const DraftTree chain = job.draft;
          DraftTree& tree = job.draft;
          const auto generated = std::int64_t(job.context.tokens.size()) - job.context.n_prompt;
          const int room = int(std::min<std::int64_t>(14, 159 - generated)) - chain.size();
          if (chain.empty()) continue;
          tree.clear();
          int last = -1, added = 0;  // the chain's node that came last
          for (int i = 0; i < chain.size();) {
            if (added < room && random() % 2 == 0) {
              const int parent = int(random() % std::uint64_t(tree.size() + 1)) - 1;
              const auto token = TokenId(random() % 300);
              const bool next = parent == last && token == chain.tokens[std::size_t(i)];
              if (next || tree.child(parent, token) >= 0) continue;
              tree.push_after(parent, token, 0.1f, SpeculatorKind::kNgram, 0.1f);
              ++added;
              continue;
            }
            const auto node = std::size_t(i++);
            tree.push_after(last, chain.tokens[node], chain.confidences[node], chain.kinds[node],
                            chain.raw[node]);
            last = tree.size() - 1;
          }
          trees += !tree.is_chain();
        }
      };
      const auto got = run_engine(models_, o, requests, 1);
      EXPECT_EQ(got.outputs, wanted.outputs) << "mode " << int(mode) << " T " << temperature;
      EXPECT_GT(trees, 100);
      EXPECT_GT(got.stats.acceptance.accepted, chains.stats.acceptance.accepted * 9 / 10);
      EXPECT_GT(chains.stats.acceptance.accepted, 20);
      std::int64_t logged_trees = 0;
      for (std::size_t i = 0; i < requests.size(); ++i) {
        for (const RoundTrace& round : got.traces[i]->rounds)
          logged_trees += !is_chain(round.parents);
        EXPECT_EQ(got.traces[i]->tap_values, wanted.traces[i]->tap_values);
      }
      EXPECT_EQ(logged_trees, trees);
    }
  }
}

TEST_F(TinyEngine, EverySpeculatorEmitsWhatNoneEmits) {
  for (const KvMode mode : {KvMode::kBf16, KvMode::kInt2}) {
    for (const float temperature : {0.0f, 0.8f}) {
      std::vector<HarnessRequest> requests;
      for (int i = 0; i < 4; ++i) {
        HarnessRequest r;
        r.prompt = prompt(310 + 23 * i,
                          i);  // past position 384, where INT2 pages are read, while decoding
        r.sampling.temperature = temperature;
        r.sampling.seed = 99 + std::uint64_t(i);
        if (i == 1) r.sampling.min_p = 0.02f;
        if (i == 2) r.sampling.repetition_penalty = 1.3f;
        if (i == 3) r.sampling.frequency_penalty = 0.4f, r.sampling.presence_penalty = 0.2f;
        r.max_tokens = 140;
        requests.push_back(r);
      }
      EngineOptions o = options();
      o.kv_cache_dtype = mode;
      o.spec_type = spec_type("none");
      const auto wanted = run_engine(models_, o, requests, 1).outputs;
      for (const SpecType spec :
           {spec_type("ngram"), spec_type("model"), spec_type("head"), spec_type("auto")}) {
        for (const int fixed : {-1, 5}) {
          o.spec_type = spec;
          o.spec_draft_n_fixed = fixed;
          o.max_batch_rows = fixed == 5 ? 64 : 256;
          o.spec_draft_vocab = fixed == 5 ? 64 : 0;  // of 320: most of what is wanted has no row
          o.threads = fixed == 5 ? 2 : 1;
          // Lengths by cost: tables alone; fixed: between heads of both architectures and none, a
          // canary beside them.
          HarnessModels models = models_;
          models.swap_every_rounds = 10;
          if (fixed > 0) {
            models.swap_to = {heads_[0], eagle_, initial_weights()};
            models.learned = heads_[0];
            models.canary = heads_[1];
            models.canary_fraction = 0.5;
          }
          const auto got = run_engine(models, o, requests);
          EXPECT_EQ(got.outputs, wanted) << "spec " << spec.name << " fixed " << fixed << " mode "
                                         << int(mode) << " T " << temperature;
          if (fixed > 0) {
            EXPECT_GT(got.stats.acceptance.drafted, 0);
          }
        }
      }
    }
  }
}

// The law on every architecture: a tiny random model of each, drafts of fixed length from n-grams
// and from a shallower model, beside the same without any.
TEST(Architectures, EverySpeculatorEmitsWhatNoneEmits) {
  for (const Architecture* architecture : architectures()) {
    SCOPED_TRACE(architecture->name);
    TemporaryDirectory directory;
    TinyModelOptions tiny;
    tiny.architecture = architecture->name;
    tiny.n_layers = 2;
    tiny.hidden = tiny.ffn = 64;
    write_tiny_model(directory.file("m.gguf"), tiny);
    HarnessModels models;
    ModelLoadOptions load;
    load.threads = 1;
    auto target = Model::load(directory.file("m.gguf"), load);
    ASSERT_TRUE(target) << target.error().message;
    load.drop_last_layers = 1;
    auto draft = Model::load(directory.file("m.gguf"), load);
    ASSERT_TRUE(draft) << draft.error().message;
    models.model = *target;
    models.draft = *draft;
    models.calibration = KvCalibration::data_free((*target)->kv_geometry());
    models.draft_calibration = KvCalibration::data_free((*draft)->kv_geometry());
    std::vector<HarnessRequest> requests(3);
    for (std::size_t i = 0; i < requests.size(); ++i) {
      for (int t = 0; t < 350; ++t)
        requests[i].prompt.push_back((t * 7 + int(i) + (t % 5) * 31) % 250);
      requests[i].sampling.temperature = i == 0 ? 0.0f : 0.8f;
      requests[i].sampling.seed = 31 + i;
      requests[i].max_tokens = 100;  // past position 384, where sealed pages are read
    }
    EngineOptions o;
    o.threads = 1;
    o.max_model_len = 1024;
    o.max_num_seqs = 3;
    o.control_fraction = 0;
    o.spec_type = spec_type("none");
    const auto wanted = run_engine(models, o, requests, 1).outputs;
    for (const SpecType spec : {spec_type("ngram"), spec_type("model")}) {
      o.spec_type = spec;
      o.spec_draft_n_fixed = 5;
      o.max_batch_rows = spec == spec_type("model") ? 64 : 256;
      const auto got = run_engine(models, o, requests);
      EXPECT_EQ(got.outputs, wanted) << "spec " << spec.name;
      EXPECT_GT(got.stats.acceptance.drafted, 0);
    }
  }
}

// The other KV modes, each as the target's and as the draft model's: the law is the same, the test
// shorter.
TEST_F(TinyEngine, EveryKvModeEmitsWhatItEmitsAlone) {
  std::map<KvMode, std::vector<std::vector<TokenId>>> outputs;
  for (std::size_t m = 0; m < kv_modes().size(); ++m) {
    const KvMode mode = kv_modes()[m];
    std::vector<HarnessRequest> requests;
    for (int i = 0; i < 2; ++i) {
      HarnessRequest r;
      r.prompt = prompt(330 + 41 * i, i);
      r.sampling.temperature = 0.8f;
      r.sampling.seed = 7 + std::uint64_t(i);
      r.max_tokens = 140;
      requests.push_back(r);
    }
    EngineOptions o = options();
    o.kv_cache_dtype = mode;
    o.spec_type = spec_type("none");
    outputs[mode] = run_engine(models_, o, requests, 1).outputs;
    for (const SpecType spec : {spec_type("model"), spec_type("auto")}) {
      o.spec_type = spec;
      o.spec_draft_n_fixed = 5;
      o.draft_kv_cache_dtype = kv_modes()[(m + 3) % kv_modes().size()];
      o.max_batch_rows = spec == spec_type("model") ? 64 : 256;
      o.threads = spec == spec_type("model") ? 2 : 1;
      const auto got = run_engine(models_, o, requests);
      EXPECT_EQ(got.outputs, outputs[mode]) << kv_mode_name(mode) << " spec " << spec.name;
      EXPECT_EQ(got.stats.kv.sealed_page_reads_total > 0, mode != KvMode::kBf16);
      EXPECT_GT(got.stats.acceptance.drafted, 0);
    }
  }
  // The modes are not one and the same: at two bits an untrained model's outputs differ.
  EXPECT_NE(outputs[KvMode::kInt2], outputs[KvMode::kBf16]);
  EXPECT_NE(outputs[KvMode::kInt2Kivi], outputs[KvMode::kInt2]);
}

// Both acceptance rules sample the target's distribution: the first two tokens against exact
// probabilities. 8 choices a token by top-k: 64 cells; p < 1e-4 fails (a wrong rule gives far
// smaller ones).
class Distribution : public TinyEngine {
 protected:
  std::int64_t draft_vocab_ = 0;
  double chi_square_p(SpecSampling rule, SpecType spec, bool break_rule) {
    const std::vector<TokenId> start = prompt(12);
    SamplingParams sampling;
    sampling.temperature = 1.0f;
    sampling.top_k = 8;
    // Exact: one-token runs give top-8 logprobs at each of the nine contexts.
    EngineOptions o = options();
    o.kv_cache_dtype = KvMode::kBf16;
    o.spec_type = spec_type("none");
    o.spec_draft_vocab = draft_vocab_;
    auto distribution = [&](const std::vector<TokenId>& context) {
      std::vector<std::pair<TokenId, double>> out;
      auto engine = Engine::create(models_.model, nullptr, nullptr, nullptr, o, {});
      EXPECT_TRUE(engine.ok());
      std::mutex mutex;
      std::condition_variable ready;
      bool done = false;
      EngineRequest r;
      r.id = (*engine)->next_request_id();
      r.prompt = context;
      r.max_tokens = 1;
      r.top_logprobs = 8;
      r.sampling.temperature = 0;
      r.sink = [&](EngineEvent&& e) {
        std::lock_guard lock(mutex);
        if (!e.logprobs.empty()) {
          for (const auto& [token, logprob] : e.logprobs[0].top)
            out.emplace_back(token, std::exp(double(logprob)));
        }
        if (e.finish) done = true;
        ready.notify_all();
      };
      EXPECT_TRUE((*engine)->submit(std::move(r)).ok());
      std::unique_lock lock(mutex);
      ready.wait(lock, [&] { return done; });
      double total = 0;
      for (auto& [token, p] : out) total += p;
      for (auto& [token, p] : out) p /= total;
      return out;
    };
    std::map<std::pair<TokenId, TokenId>, double> expected;
    for (const auto& [first, p] : distribution(start)) {
      std::vector<TokenId> context = start;
      context.push_back(first);
      for (const auto& [second, q] : distribution(context)) expected[{first, second}] = p * q;
    }
    // The scalar reference is the slow truth: fewer samples still tell a wrong rule from a right
    // one.
    const int n_samples = kernels::active_isa() == kernels::Isa::kScalar ? 1500 : 6000;
    std::vector<HarnessRequest> requests;
    for (int i = 0; i < n_samples; ++i) {
      HarnessRequest r;
      r.prompt = start;
      r.sampling = sampling;
      r.sampling.seed = 1000003ull * std::uint64_t(i) + 17;
      r.max_tokens = 3;  // the second token is drafted and verified, the third ends it
      requests.push_back(r);
    }
    o.spec_type = spec;
    o.spec_sampling = rule;
    o.spec_draft_n_fixed = 2;
    o.max_num_seqs = 8;
    o.max_queue = n_samples;
    if (spec == spec_type("head")) models_.learned = heads_[0];
    HarnessModels models = models_;
    if (break_rule) models.model = with_faulty_logits(models_.model, LogitFault::kAcceptFirstDraft);
    const auto got = run_engine(models, o, requests, 64);
    EXPECT_GT(got.stats.acceptance.drafted, n_samples / 2);
    EXPECT_GT(got.stats.acceptance.accepted, 0);
    std::map<std::pair<TokenId, TokenId>, int> counted;
    for (const auto& tokens : got.outputs) ++counted[{tokens.at(0), tokens.at(1)}];
    // Pool cells below 5 expected.
    double chi = 0, pooled_expected = 0, pooled_count = 0;
    int cells = 0;
    for (const auto& [cell, p] : expected) {
      const double e = p * n_samples, c = counted.count(cell) ? counted[cell] : 0;
      if (e < 5) {
        pooled_expected += e;
        pooled_count += c;
      } else {
        chi += (c - e) * (c - e) / e;
        ++cells;
      }
    }
    for (const auto& [cell, c] : counted) {
      if (!expected.count(cell)) chi += 1e9;  // outside the filtered set: impossible
    }
    if (pooled_expected > 0) {
      chi += (pooled_count - pooled_expected) * (pooled_count - pooled_expected) / pooled_expected;
      ++cells;
    }
    // Wilson-Hilferty: the chi-square's cube root is nearly normal.
    const double df = cells - 1;
    const double z = (std::cbrt(chi / df) - (1 - 2 / (9 * df))) / std::sqrt(2 / (9 * df));
    return 0.5 * std::erfc(z / std::sqrt(2.0));
  }
};

TEST_F(Distribution, InvariantSamplingFollowsTheTarget) {
  EXPECT_GT(chi_square_p(SpecSampling::kInvariant, spec_type("model"), false), 1e-4);
}
TEST_F(Distribution, RejectionSamplingFollowsTheTarget) {
  EXPECT_GT(chi_square_p(SpecSampling::kRejection, spec_type("model"), false), 1e-4);
  draft_vocab_ = 64;
  EXPECT_GT(chi_square_p(SpecSampling::kRejection, spec_type("model"), false), 1e-4);
}
// The head drafts the most likely token (it must not know the noise that decides its acceptance),
// or with the request's own noise where the target chooses with the same.
TEST_F(Distribution, TheHeadsDraftsLeaveItAlone) {
  EXPECT_GT(chi_square_p(SpecSampling::kRejection, spec_type("head"), false), 1e-4);
  EXPECT_GT(chi_square_p(SpecSampling::kInvariant, spec_type("head"), false), 1e-4);
}
TEST_F(Distribution, AWrongAcceptanceRuleDoesNot) {
  EXPECT_LT(chi_square_p(SpecSampling::kRejection, spec_type("model"), true), 1e-6);
}

// Hidden states are logged for the prompt's end and every generated position that has KV, whatever
// was drafted, rejected, preempted or recomputed, and are those of one plain pass over the tokens.
TEST_F(TinyEngine, LogsTheHiddenStatesOfWhatWasCommitted) {
  std::vector<HarnessRequest> requests;
  for (int i = 0; i < 3; ++i) {
    HarnessRequest r;
    r.prompt = prompt(i == 0 ? 300 : 20 + 40 * i, i);
    r.sampling.temperature = i == 1 ? 0.8f : 0.0f;
    r.sampling.seed = 5;
    r.max_tokens = 120;
    requests.push_back(r);
  }
  EngineOptions o = options();
  o.kv_cache_dtype = KvMode::kBf16;
  o.spec_type = spec_type("auto");
  o.spec_draft_n_fixed = 4;
  o.max_num_seqs = 3;
  o.max_batch_rows = 64;
  const auto g = models_.model->kv_geometry();
  // Of the 7 + 4 + 4 pages the three come to want, 11.
  o.kv_cache_memory =
      std::size_t(g.n_layers) * std::size_t(g.n_kv_heads) * std::size_t(g.head_dim) * 4 * 64 * 11;
  HarnessModels models = models_;
  models.learned = heads_[0];
  const auto got = run_engine(models, o, requests, 3);
  EXPECT_GT(got.stats.preemptions, 0) << "the pool was large enough: the test proves less";
  ASSERT_EQ(got.traces.size(), 3u);
  const std::int64_t hidden = models_.model->config().hidden;
  const auto width = std::size_t(kHeadTaps * hidden);
  const auto taps = head_taps(models_.model->config().n_layers);
  bool rejected = false, head_drafted = false;
  for (const auto& trace : got.traces) {
    for (const RoundTrace& round : trace->rounds) {
      rejected |= round.accepted < int(round.drafted.size());
      // Features are at hand in every round, the first and those after a preemption included.
      for (const SpeculatorKind kind : round.kinds) head_drafted |= kind == SpeculatorKind::kHead;
    }
    const auto n = std::int64_t(trace->tokens.size());
    EXPECT_EQ(trace->n_taps, kHeadTaps);
    EXPECT_EQ(trace->tap_width, hidden);
    EXPECT_EQ(trace->tap_first, std::max(0, trace->n_prompt - kTracedPrompt));
    ASSERT_EQ(trace->tap_positions(), n - 1 - trace->tap_first);
    KvOptions kv_options;
    kv_options.mode = KvMode::kBf16;
    kv_options.memory_bytes = std::size_t(64) << 20;
    kv_options.max_rows = int(n);
    kv_options.max_model_len = 1024;
    auto kv = models_.model->make_memory(kv_options, nullptr);
    ASSERT_TRUE(kv) << kv.error().message;
    const KvSequence sequence = (*kv)->open().value();
    ASSERT_TRUE((*kv)->reserve(sequence, n));
    const auto workspace = models_.model->make_workspace(int(n), 1);
    kernels::ThreadPool pool(1);
    const auto features = models_.model->make_feature_rows(taps, int(n), 0);
    std::vector<float> values(width);
    const KvRows rows{sequence, 0, int(n - 1), 0};
    ForwardBatch batch;
    batch.tokens = std::span(trace->tokens).first(std::size_t(n - 1));
    batch.sequences = {&rows, 1};
    batch.features = features.get();
    models_.model->forward(batch, **kv, *workspace, pool);
    std::vector<std::uint16_t> encoded(width);
    std::array<float, kHeadTaps> scales;
    for (std::int64_t row = 0; row < trace->tap_positions(); ++row) {
      features->read_back(int(trace->tap_first + row), values.data());
      encode_features(values.data(), hidden, encoded.data(), scales.data());
      ASSERT_TRUE(std::equal(encoded.begin(), encoded.end(),
                             trace->tap_values.begin() + std::ptrdiff_t(std::size_t(row) * width)))
          << "position " << trace->tap_first + row;
      ASSERT_TRUE(
          std::equal(scales.begin(), scales.end(), trace->tap_scales.begin() + row * kHeadTaps));
    }
  }
  EXPECT_TRUE(rejected);
  EXPECT_TRUE(head_drafted);
}

// The head drafts from the first decode round on, after control rounds and preemption too.
TEST_F(TinyEngine, TheHeadIsReadyInEveryRound) {
  EngineOptions o = options();
  o.kv_cache_dtype = KvMode::kBf16;
  o.spec_type = spec_type("head");
  o.spec_draft_n_fixed = 2;
  o.control_fraction = 0.3;
  HarnessModels models = models_;
  models.learned = heads_[1];
  std::vector<HarnessRequest> requests;
  for (int i = 0; i < 5; ++i) {
    HarnessRequest r;
    r.prompt = prompt(1 + 37 * i, i);
    r.sampling.temperature = 0;
    r.max_tokens = 60;
    requests.push_back(r);
  }
  const auto got = run_engine(models, o, requests);
  int controls = 0;
  for (const auto& trace : got.traces) {
    ASSERT_FALSE(trace->rounds.empty());
    for (const RoundTrace& round : trace->rounds) {
      controls += round.control;
      if (round.control || round.start + 1 >= int(trace->tokens.size())) continue;
      ASSERT_FALSE(round.kinds.empty()) << round.start;
      for (const SpeculatorKind kind : round.kinds) EXPECT_EQ(kind, SpeculatorKind::kHead);
      EXPECT_EQ(round.version, heads_[1]->version);
    }
  }
  EXPECT_GT(controls, 5);
}

// A head with a past of its own: what the log's replay accepts is what was accepted, past the end
// of its window, after preemptions, in requests that a swap gave to it in mid-course; and where
// nothing is logged it drafts as well.
TEST_F(TinyEngine, AnEagleHeadReplaysAsItRan) {
  EngineOptions o = options();
  o.kv_cache_dtype = KvMode::kBf16;
  o.spec_type = spec_type("head");
  o.spec_draft_n_fixed = 3;
  o.max_num_seqs = 3;
  o.max_batch_rows = 64;
  const auto g = models_.model->kv_geometry();
  o.kv_cache_memory =
      std::size_t(g.n_layers) * std::size_t(g.n_kv_heads) * std::size_t(g.head_dim) * 4 * 64 * 14;
  std::vector<HarnessRequest> requests;
  for (int i = 0; i < 5; ++i) {
    HarnessRequest r;
    r.prompt = prompt(5 + 90 * i, i);
    r.sampling.temperature = i % 2 ? 0.8f : 0;
    r.sampling.seed = 31 + std::uint64_t(i);
    r.max_tokens = 150;
    requests.push_back(r);
  }
  HarnessModels models = models_;
  models.learned = eagle_;
  for (const bool swaps : {false, true}) {
    SCOPED_TRACE(swaps);
    if (swaps) {
      models.swap_every_rounds = 7;
      models.swap_to = {eagle_, heads_[0], initial_weights(), eagle_};
    }
    const auto got = run_engine(models, o, requests);
    EXPECT_GT(got.stats.preemptions, 0) << "the pool was large enough: the test proves less";
    ASSERT_EQ(got.traces.size(), requests.size());
    std::int64_t accepted = 0, by_head = 0, differ = 0;
    for (const auto& trace : got.traces) {
      PortfolioReplay replay(spec_type("head"), eagle_.get());
      PortfolioReplay other(spec_type("head"), heads_[1].get());
      const PortfolioWalk walk = replay.walk_logged(*trace), wrong = other.walk_logged(*trace);
      ASSERT_EQ(walk.accepted.size(), trace->rounds.size());
      EXPECT_EQ(walk.rounds_without_features, 0);
      for (std::size_t i = 0; i < trace->rounds.size(); ++i) {
        const RoundTrace& round = trace->rounds[i];
        if (round.version != eagle_->version) continue;
        ASSERT_EQ(walk.accepted[i], round.accepted) << "from " << round.start;
        accepted += round.accepted;
        by_head += std::ranges::count(round.kinds, SpeculatorKind::kHead);
        differ += wrong.accepted[i] != round.accepted;
      }
    }
    // An untrained head has two or three per cent accepted, on some instruction sets fewer than on
    // others: this only shows that the counts compared are not all zero.
    EXPECT_GT(accepted, 3);
    EXPECT_GT(by_head, 200);
    EXPECT_GT(differ, 0) << "any head would have passed";
  }
}

TEST_F(TinyEngine, CancelFreesPagesWithinOneRoundAndOthersGoOn) {
  EngineOptions o = options();
  auto engine = Engine::create(models_.model, models_.calibration, nullptr, nullptr, o, {});
  ASSERT_TRUE(engine) << engine.error().message;
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::uint64_t, FinishReason> finished;
  std::map<std::uint64_t, int> tokens;
  auto submit = [&](int n_prompt, int max_tokens) {
    EngineRequest r;
    r.id = (*engine)->next_request_id();
    r.prompt = prompt(n_prompt);
    r.max_tokens = max_tokens;
    r.sampling.seed = 5;
    r.sink = [&](EngineEvent&& e) {
      std::lock_guard lock(mutex);
      tokens[e.request.value] += int(e.tokens.size());
      if (e.finish) finished[e.request.value] = *e.finish;
      changed.notify_all();
    };
    const RequestId id = r.id;
    EXPECT_TRUE((*engine)->submit(std::move(r)).ok());
    return id;
  };
  const RequestId goes = submit(100, 200), leaves = submit(100, 900),
                  queued_prefill = submit(900, 100);
  {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return tokens[leaves.value] > 3; });
  }
  (*engine)->cancel(leaves);
  (*engine)->cancel(queued_prefill);
  {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return finished.size() == 3; });
  }
  EXPECT_EQ(finished[leaves.value], FinishReason::kAborted);
  EXPECT_EQ(finished[queued_prefill.value], FinishReason::kAborted);
  EXPECT_EQ(finished[goes.value], FinishReason::kLength);
  EXPECT_EQ(tokens[goes.value], 200);
  for (int i = 0; i < 300 && !(*engine)->idle(); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  EXPECT_EQ((*engine)->stats().kv.used_bytes, 0u);
  EXPECT_EQ((*engine)->stats().requests_aborted, 2);
}

// The default memory of every mode, for as few sequences as there can be: a request that asks for
// the rest of the context, as one without max_tokens does, is served to its last token.
TEST_F(TinyEngine, ARequestMayFillTheContextOfTheDefaultConfiguration) {
  for (const kernels::KvFormat& format : kernels::kKvFormats) {
    for (const int sequences : {1, 4}) {
      EngineOptions o = options();
      o.kv_cache_dtype = format.mode;
      o.max_num_seqs = sequences;
      HarnessRequest r;
      r.prompt = prompt(1000);
      r.max_tokens = 24;
      const HarnessResult result = run_engine(models_, o, {r});
      ASSERT_EQ(result.outputs.size(), 1u) << format.name;
      EXPECT_EQ(result.outputs[0].size(), 24u) << format.name;
      EXPECT_GT(result.stats.acceptance.drafted, 0) << format.name;
    }
  }
}

TEST(TokenLimit, IsWhatWasAskedForOrTheRestOfTheContext) {
  EXPECT_EQ(*token_limit(10, std::nullopt, 100), 90);
  EXPECT_EQ(*token_limit(10, 90, 100), 90);
  EXPECT_EQ(*token_limit(99, std::nullopt, 100), 1);
  const auto refused = [](std::int64_t n_prompt, std::optional<std::int64_t> max_tokens) {
    const auto limit = token_limit(n_prompt, max_tokens, 100);
    EXPECT_FALSE(limit) << n_prompt;
    EXPECT_EQ(limit.error().code, ErrorCode::kOutOfRange);
    return limit.error().message;
  };
  EXPECT_NE(refused(10, 91).find("requested 101 tokens"), std::string::npos);
  for (const int n_prompt : {100, 150})
    EXPECT_NE(refused(n_prompt, std::nullopt).find(fmt::format("{} tokens", n_prompt)),
              std::string::npos);
}

TEST_F(TinyEngine, BadRequestsAreNamedErrors) {
  EngineOptions o = options();
  o.max_queue = 2;
  auto engine = Engine::create(models_.model, models_.calibration, nullptr, nullptr, o, {});
  ASSERT_TRUE(engine) << engine.error().message;
  auto status = [&](std::vector<TokenId> tokens, int max_tokens) {
    EngineRequest r;
    r.id = (*engine)->next_request_id();
    r.prompt = std::move(tokens);
    r.max_tokens = max_tokens;
    r.sink = [](EngineEvent&&) {};
    const Status s = (*engine)->submit(std::move(r));
    return s.ok() ? std::string("ok") : s.error().message;
  };
  EXPECT_NE(status({}, 4).find("prompt is empty"), std::string::npos);
  EXPECT_NE(status({1, 2, 100000}, 4).find("100000"), std::string::npos);
  EXPECT_NE(status({1, -2}, 4).find("-2"), std::string::npos);
  EXPECT_NE(status({1}, 0).find("max_tokens"), std::string::npos);
  const std::string too_long = status(prompt(1020), 50);
  EXPECT_NE(too_long.find("1024"), std::string::npos) << too_long;
  EXPECT_NE(too_long.find("1020"), std::string::npos) << too_long;
  (*engine)->drain();
  EXPECT_NE(status({1}, 4).find("draining"), std::string::npos);
}

TEST_F(TinyEngine, StopTokensEndInsideABlock) {
  EngineOptions o = options();
  o.spec_type = spec_type("none");
  HarnessRequest r;
  r.prompt = prompt(64);
  r.max_tokens = 40;
  const auto free_run = run_engine(models_, o, {r}).outputs[0];
  ASSERT_EQ(free_run.size(), 40u);
  // The first token that had not occurred before position 10 on: a stop in the middle.
  std::size_t at = 10;
  while (std::find(free_run.begin(), free_run.begin() + long(at), free_run[at]) !=
         free_run.begin() + long(at)) {
    ASSERT_LT(++at, free_run.size())
        << "the random model repeats itself from the start: choose another seed";
  }
  r.stop_tokens = {free_run[at]};
  o.spec_type = spec_type("model");
  o.spec_draft_n_fixed = 6;
  const auto stopped = run_engine(models_, o, {r});
  EXPECT_EQ(stopped.finish[0], FinishReason::kStop);
  EXPECT_EQ(stopped.outputs[0],
            std::vector<TokenId>(free_run.begin(), free_run.begin() + long(at)));
}

}  // namespace
}  // namespace foretoken::testing
