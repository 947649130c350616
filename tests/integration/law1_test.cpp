// Law 1: a request's output tokens are a function of the request and its seed alone. One equality
// test on a real model over speculators, draft lengths, batches, prefill chunkings, thread counts,
// KV modes, temperatures and hot swaps; and negative controls, which the very same comparison must
// catch. FORETOKEN_TEST_FULL=1: the pairwise cover; otherwise a few minutes' selection of it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <numeric>

#include "foretoken/kernels/isa.h"
#include "tests/support/faulty_logits.h"
#include "tests/support/faulty_pages.h"
#include "tests/support/small_model.h"

namespace foretoken::testing {
namespace {

// Prompts a small instruct model answers at length and partly by repeating itself, so that drafts
// are accepted; long enough that decoding passes position 640 and seals three pages or more.
std::vector<std::string> prompt_texts() {
  std::string inventory = "Here is the inventory of a hardware shop, one item a line.\n";
  const char* items[] = {"claw hammer",  "wood screws", "pipe wrench",
                         "paint roller", "work gloves", "tape measure"};
  for (int i = 0; i < 34; ++i) {
    inventory += "Item " + std::to_string(100 + i) + ": " + items[i % 6] + ", shelf " +
                 std::to_string(1 + i % 7) + ", in stock " + std::to_string((i * 37) % 90) + ".\n";
  }
  std::string log = "This is a log of a build server.\n";
  for (int i = 0; i < 26; ++i) {
    log += "step " + std::to_string(i) + " compile module_" + std::to_string(i % 9) +
           ".cpp finished in " + std::to_string(12 + (i * 7) % 31) + " seconds with " +
           std::to_string(i % 3) + " warnings\n";
  }
  std::string story;
  for (int i = 0; i < 9; ++i) {
    story += "On day " + std::to_string(i + 1) +
             " the expedition walked along the river, counted the birds they saw, and wrote down "
             "the weather. The "
             "cook made soup from beans and onions, and everybody slept early because the next day "
             "would be long. ";
  }
  return {inventory + "Write the whole list again, item by item, in the same format.",
          log + "Repeat the log above line by line and say for each step whether it had warnings.",
          story + "Retell this travel diary day by day, as exactly as you can."};
}

class Law1 : public SmallModel {
 protected:
  static constexpr int kNewTokens = 230;

  static void SetUpTestSuite() {
    const auto real = load(prompt_texts());
    if (!real) return;
    for (const auto& prompt : prompts_) {
      ASSERT_GT(prompt.size() + kNewTokens, 640u)
          << "a prompt is too short to cross the seals this test is about";
    }
    kernels::ThreadPool pool(2);
    models_->calibration = real->calibrate({.max_tokens = 4096}, pool);
    ASSERT_TRUE(models_->calibration);
    // Two drafts from the same file: all of it (long accepts) and less its last third (rejects).
    whole_draft_ = real->model;
    ModelLoadOptions options;
    options.drop_last_layers = real->model->config().n_layers / 3;
    auto shallow = Model::load(*find_test_model(kModel), options);
    ASSERT_TRUE(shallow) << shallow.error().message;
    shallow_draft_ = *shallow;
    // Two heads and a table alone: whatever drafts, and whenever it changes.
    for (std::uint64_t i = 0; i < 2; ++i)
      learned_.push_back(untrained_head(real->model, all_tokens(), 256, 1024, 31 + i, 7 + i));
    auto table = std::make_shared<LearnedWeights>();
    table->version.value = 9;
    for (std::size_t c = 0; c < table->fusion.bias.size(); ++c)
      table->fusion.bias[c] += c % 3 ? 0.7f : -1.1f;
    learned_.push_back(table);
  }
  static void TearDownTestSuite() {
    SmallModel::TearDownTestSuite();
    whole_draft_.reset();
    shallow_draft_.reset();
    learned_.clear();
  }

  static std::vector<HarnessRequest> requests(float temperature, int count,
                                              int new_tokens = kNewTokens) {
    std::vector<HarnessRequest> all;
    for (int i = 0; i < count; ++i) {
      HarnessRequest r;
      r.prompt = prompts_[std::size_t(i) % prompts_.size()];
      r.sampling.temperature = temperature;
      r.sampling.seed = 1234 + std::uint64_t(i % 3);
      if (i % 3 == 1 && temperature > 0) r.sampling.top_p = 0.95f;
      if (i % 3 == 2 && temperature > 0) r.sampling.top_k = 40;
      r.max_tokens = new_tokens;
      all.push_back(r);
    }
    return all;
  }

  static EngineOptions base() {
    EngineOptions o;
    o.threads = 2;
    o.max_num_seqs = 8;
    o.max_model_len = 1024;
    o.control_fraction = 0;
    return o;
  }

  // Without speculation, one request at a time: what every other run must equal. Made once a (mode,
  // T).
  static const std::vector<std::vector<TokenId>>& reference(KvMode mode, float temperature) {
    auto& made = references_[{int(mode), temperature}];
    if (made.empty()) {
      EngineOptions o = base();
      o.kv_cache_dtype = mode;
      o.spec_type = spec_type("none");
      HarnessModels m = *models_;
      made = run_engine(m, o, requests(temperature, 3), 1).outputs;
    }
    return made;
  }

  static inline std::shared_ptr<const Model> whole_draft_, shallow_draft_;
  static inline std::vector<std::shared_ptr<const LearnedWeights>> learned_;
  static inline std::map<std::pair<int, float>, std::vector<std::vector<TokenId>>> references_;
};

struct Case {
  SpecType spec;
  int n_draft;  // -1: the controller's choice
  int batch;    // requests in flight
  int chunk;    // max_batch_rows
  int threads;
  KvMode mode, draft_mode;
  float temperature;
  bool swaps;
  bool shallow;  // of model drafts
};

std::string name_of(const Case& c) {
  return std::string(c.spec.name) + " draft " + std::to_string(c.n_draft) + " batch " +
         std::to_string(c.batch) + " chunk " + std::to_string(c.chunk) + " threads " +
         std::to_string(c.threads) + " kv " + std::string(kv_mode_name(c.mode)) + " draft-kv " +
         std::string(kv_mode_name(c.draft_mode)) + " T " + std::to_string(c.temperature) +
         (c.swaps ? " swaps" : "") + (c.shallow ? " shallow" : "");
}

// A greedy pairwise cover over the factors, deterministic; the quick set is its most demanding
// part.
std::vector<Case> cases() {
  constexpr KvMode kInt2 = KvMode::kInt2, kBf16 = KvMode::kBf16;
  if (!full_tests()) {
    return {
        {spec_type("ngram"), 4, 1, 256, 2, kInt2, kInt2, 0.0f, false, false},
        {spec_type("head"), 8, 3, 64, 1, kInt2, kInt2, 0.8f, true, false},
        {spec_type("model"), 5, 3, 256, 2, kInt2, kInt2, 0.0f, false, true},
        {spec_type("auto"), -1, 8, 96, 2, kInt2, kBf16, 0.8f, true, true},
        {spec_type("model"), 8, 1, 64, 2, kInt2, kInt2, 0.8f, false, false},
        {spec_type("auto"), 3, 3, 256, 1, kBf16, kInt2, 0.0f, true, false},
        {spec_type("none"), 0, 8, 64, 1, kInt2, kInt2, 0.8f, false, false},
    };
  }
  const std::vector<SpecType> specs = all_spec_types();
  std::vector<int> spec_levels(specs.size());
  std::iota(spec_levels.begin(), spec_levels.end(), 0);
  const std::vector<std::vector<int>> levels = {spec_levels, {0, 1, 2, 3, 4, 5, 6, 7, 8, -1},
                                                {1, 3, 8},   {64, 256},
                                                {1, 2},      {0, 1},
                                                {0, 1},      {0, 1},
                                                {0, 1},      {0, 1}};
  std::map<std::array<int, 4>, bool> covered;
  std::vector<Case> out;
  std::uint64_t state = 88172645463325252ull;
  auto next = [&](std::size_t n) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return std::size_t(state % n);
  };
  std::size_t total = 0;
  for (std::size_t a = 0; a < levels.size(); ++a) {
    for (std::size_t b = a + 1; b < levels.size(); ++b)
      total += levels[a].size() * levels[b].size();
  }
  while (covered.size() < total) {
    std::vector<int> best;
    std::size_t best_gain = 0;
    for (int attempt = 0; attempt < 60; ++attempt) {
      std::vector<int> pick;
      for (const auto& l : levels) pick.push_back(l[next(l.size())]);
      std::size_t gain = 0;
      for (std::size_t a = 0; a < pick.size(); ++a) {
        for (std::size_t b = a + 1; b < pick.size(); ++b)
          gain += !covered.count({int(a), pick[a], int(b), pick[b]});
      }
      if (gain > best_gain) best_gain = gain, best = pick;
    }
    if (best.empty()) continue;
    for (std::size_t a = 0; a < best.size(); ++a) {
      for (std::size_t b = a + 1; b < best.size(); ++b)
        covered[{int(a), best[a], int(b), best[b]}] = true;
    }
    out.push_back({specs[std::size_t(best[0])], best[1], best[2], best[3], best[4],
                   best[5] ? kInt2 : kBf16, best[6] ? kInt2 : kBf16, best[7] ? 0.8f : 0.0f,
                   best[8] != 0, best[9] != 0});
  }
  return out;
}

EngineOptions options_of(const Case& c, EngineOptions o) {
  o.spec_type = c.spec;
  o.spec_draft_n_fixed = c.n_draft;
  o.max_num_seqs = c.batch;
  o.max_batch_rows = c.chunk;
  o.threads = c.threads;
  o.kv_cache_dtype = c.mode;
  o.draft_kv_cache_dtype = c.draft_mode;
  o.control_fraction = c.n_draft < 0 ? 0.05 : 0;
  return o;
}

TEST_F(Law1, OutputIsAFunctionOfTheRequestAlone) {
  bool int2_read = false, accepted = false, rejected = false, sealed_inside_a_verify_block = false;
  bool head_accepted = false, head_rejected = false;
  int seals_while_decoding = 0;
  for (const Case& c : cases()) {
    SCOPED_TRACE(name_of(c));
    HarnessModels m = *models_;
    m.swap_every_rounds = c.swaps ? 10 : 0;
    if (c.spec == spec_type("model") || c.spec == spec_type("auto")) {
      m.draft = c.shallow ? shallow_draft_ : whole_draft_;
      m.draft_calibration = models_->calibration;
    }
    const auto& wanted = reference(c.mode, c.temperature);
    EngineOptions options = options_of(c, base());
    if (c.spec == spec_type("head") || c.spec == spec_type("auto")) {
      m.learned = learned_[0];
      m.canary = c.swaps ? learned_[1] : nullptr;
      m.canary_fraction = 0.4;
      if (c.swaps) m.swap_to = learned_;
    }
    if (c.shallow) options.spec_draft_vocab = 4096;
    const HarnessResult got =
        run_engine(m, options, requests(c.temperature, c.batch > 3 ? 8 : 3), c.batch);
    for (std::size_t i = 0; i < got.outputs.size(); ++i) {
      EXPECT_EQ(got.outputs[i], wanted[i % 3]) << "request " << i;
    }
    int2_read |= got.stats.kv.sealed_page_reads_total > 0;
    accepted |= got.stats.acceptance.accepted > 0;
    rejected |= got.stats.acceptance.drafted > got.stats.acceptance.accepted;
    if (c.swaps) {
      EXPECT_GT(got.stats.swaps, 0);
    }
    if (c.spec != spec_type("none") && c.n_draft > 0) {
      EXPECT_GT(got.stats.acceptance.drafted, 0);
    }
    // A page is sealed when a row of the page five further on first runs: at positions 384, 448,
    // ...
    for (const auto& trace : got.traces) {
      int seals = 0;
      for (const RoundTrace& round : trace->rounds) {
        for (std::size_t d = 0; d < round.kinds.size(); ++d) {
          if (round.kinds[d] != SpeculatorKind::kHead) continue;
          (int(d) < round.accepted ? head_accepted : head_rejected) = true;
        }
        const int first = round.start - 1, last = first + int(round.drafted.size());
        for (int border = 384; border <= last; border += 64) {
          if (border > first && border <= first + round.accepted)
            sealed_inside_a_verify_block = true;
          if (border >= first && border <= first + round.accepted) ++seals;
        }
      }
      seals_while_decoding = std::max(seals_while_decoding, seals);
      EXPECT_GE(trace->tokens.size(), 640u);
    }
  }
  EXPECT_TRUE(int2_read) << "no INT2 page was read: the test proves nothing";
  EXPECT_TRUE(accepted) << "no draft was accepted: the test proves nothing";
  EXPECT_TRUE(rejected) << "no draft was rejected: the test proves nothing";
  EXPECT_TRUE(head_accepted && head_rejected) << "the head did not draft: nothing is proved of it";
  EXPECT_GE(seals_while_decoding, 3);
  EXPECT_TRUE(sealed_inside_a_verify_block);
}

// Every KV mode over many prompts, with --full alone: 200 prompts of 500 tokens and more, 256 new
// tokens each, eight at a time with a draft model of another mode, against one at a time without
// speculation. FORETOKEN_TEST_LAW1_PROMPTS=FIRST-END: these of the 200; FORETOKEN_TEST_LAW1_MODES:
// these modes.
TEST_F(Law1, EveryKvModeOverManyPrompts) {
  if (!full_tests()) GTEST_SKIP() << "with FORETOKEN_TEST_FULL alone";
  constexpr int n_prompts = 200;
  int first_prompt = 0, end_prompt = n_prompts;
  if (const char* wanted = std::getenv("FORETOKEN_TEST_LAW1_PROMPTS")) {
    ASSERT_EQ(std::sscanf(wanted, "%d-%d", &first_prompt, &end_prompt), 2) << wanted;
    ASSERT_TRUE(0 <= first_prompt && first_prompt < end_prompt && end_prompt <= n_prompts)
        << wanted;
  }
  const char* wanted_modes = std::getenv("FORETOKEN_TEST_LAW1_MODES");
  auto tokenizer = Tokenizer::from_gguf(models_->model->file());
  ASSERT_TRUE(tokenizer);
  std::string text;
  for (const char* file : {"prose.txt", "code.txt", "manual.txt"}) text += corpus_text(file);
  const auto tokens = (*tokenizer)->encode(text, false);
  ASSERT_TRUE(tokens);
  std::vector<HarnessRequest> all;
  for (int i = first_prompt; i < end_prompt; ++i) {
    const std::size_t length = 500 + 13 * (i % 11);
    const std::size_t first = (tokens->size() - length) / n_prompts * std::size_t(i);
    HarnessRequest r;
    r.prompt.assign(tokens->begin() + static_cast<std::ptrdiff_t>(first),
                    tokens->begin() + static_cast<std::ptrdiff_t>(first + length));
    r.sampling.temperature = i % 2 ? 0.8f : 0.0f;
    r.sampling.seed = 1234 + std::uint64_t(i);
    r.max_tokens = 256;
    all.push_back(r);
  }
  for (std::size_t m = 0; m < kv_modes().size(); ++m) {
    const KvMode mode = kv_modes()[m];
    if (wanted_modes != nullptr &&
        (" " + std::string(wanted_modes) + " ").find(" " + std::string(kv_mode_name(mode)) + " ") ==
            std::string::npos)
      continue;
    EngineOptions o = base();
    o.kv_cache_dtype = mode;
    o.spec_type = spec_type("none");
    const auto wanted = run_engine(*models_, o, all, 1).outputs;
    HarnessModels with_draft = *models_;
    with_draft.draft = shallow_draft_;
    with_draft.draft_calibration = models_->calibration;
    o.spec_type = spec_type("auto");
    o.spec_draft_n_fixed = 4;
    o.draft_kv_cache_dtype = kv_modes()[(m + 3) % kv_modes().size()];
    const HarnessResult got = run_engine(with_draft, o, all, 8);
    int equal = 0;
    for (std::size_t i = 0; i < all.size(); ++i) {
      EXPECT_EQ(got.outputs[i], wanted[i]) << kv_mode_name(mode) << " request " << i;
      equal += got.outputs[i] == wanted[i] ? 1 : 0;
    }
    EXPECT_GT(got.stats.acceptance.accepted, 0);
    EXPECT_EQ(got.stats.kv.sealed_page_reads_total > 0, mode != KvMode::kBf16);
    std::printf("%s: %d of %zu requests equal\n", std::string(kv_mode_name(mode)).c_str(), equal,
                all.size());
  }
}

// Preemption: a pool too small for all, and the outputs stay the same.
TEST_F(Law1, PreemptionChangesNothing) {
  EngineOptions o = base();
  o.spec_type = spec_type("ngram");
  o.spec_draft_n_fixed = 4;
  o.kv_cache_dtype = KvMode::kBf16;
  o.max_num_seqs = 3;
  const auto g = models_->model->kv_geometry();
  // Two sequences of 1024 tokens, of the three that will want about 800 each.
  o.kv_cache_memory = std::size_t(g.n_layers) * std::size_t(g.n_kv_heads) *
                      std::size_t(g.head_dim) * 4 * 64 * (2 * 13);
  const HarnessResult got = run_engine(*models_, o, requests(0.0f, 3), 3);
  EXPECT_GT(got.stats.preemptions, 0) << "the pool was large enough: the test proves nothing";
  for (std::size_t i = 0; i < 3; ++i)
    EXPECT_EQ(got.outputs[i], reference(KvMode::kBf16, 0.0f)[i]) << i;
}

// Prefix hits: resumed at a border, with the window's pages read in 16 bits that others have sealed
// since, an answer is what it is when everything is computed. FORETOKEN_TEST_FULL=1: at every
// border.
class Law1Prefix : public Law1 {
 protected:
  // To each border a prompt that leaves its tail there and one that resumes from it and goes its
  // own way; between them the whole prompt, which seals what the tails hold.
  static std::vector<HarnessRequest> at_borders(float temperature,
                                                const std::vector<std::size_t>& borders) {
    const std::vector<TokenId>&all = prompts_[0], &other = prompts_[1];
    HarnessRequest r;
    r.sampling.temperature = temperature;
    r.sampling.seed = 77;
    std::vector<HarnessRequest> requests;
    for (const std::size_t border : borders) {
      r.prompt.assign(all.begin(), all.begin() + std::ptrdiff_t(border) + 1);
      r.max_tokens = 1;
      requests.push_back(r);
    }
    r.prompt = all;
    requests.push_back(r);
    for (const std::size_t border : borders) {
      r.prompt.assign(all.begin(), all.begin() + std::ptrdiff_t(border));
      r.prompt.insert(r.prompt.end(), other.begin() + 40, other.begin() + 80);
      r.max_tokens = 50;
      requests.push_back(r);
    }
    return requests;
  }
};

TEST_F(Law1Prefix, HitsChangeNothing) {
  std::vector<std::size_t> borders{256, 384, 448};
  if (full_tests()) {
    borders.clear();
    for (std::size_t b = 64; b + 1 < prompts_[0].size(); b += 64) borders.push_back(b);
  }
  for (const KvMode mode :
       full_tests() ? std::vector{KvMode::kInt2, KvMode::kBf16} : std::vector{KvMode::kInt2}) {
    for (const float temperature : full_tests() ? std::vector{0.0f, 0.8f} : std::vector{0.8f}) {
      const auto requests = at_borders(temperature, borders);
      EngineOptions o = base();
      o.kv_cache_dtype = mode;
      o.spec_type = spec_type("none");
      o.prefix_cache = false;
      const auto wanted = run_engine(*models_, o, requests, 1).outputs;
      HarnessModels m = *models_;
      m.learned = learned_[0];
      o.prefix_cache = true;
      o.spec_type = spec_type("auto");
      o.spec_draft_n_fixed = 4;
      const HarnessResult got = run_engine(m, o, requests, 1);
      EXPECT_EQ(got.outputs, wanted) << int(mode) << " T " << temperature;
      for (std::size_t i = 0; i < borders.size(); ++i)
        EXPECT_EQ(got.cached[borders.size() + 1 + i], std::int64_t(borders[i]));
      EXPECT_GT(got.stats.acceptance.accepted, 0);
    }
  }
}
TEST_F(Law1Prefix, AHitFromCodesIsCaught) {
  const auto requests = at_borders(0.8f, {448});
  EngineOptions o = base();
  o.spec_type = spec_type("none");
  o.prefix_cache = false;
  const auto wanted = run_engine(*models_, o, requests, 1).outputs;
  o.prefix_cache = true;
  EXPECT_EQ(run_engine(*models_, o, requests, 1).outputs, wanted);
  HarnessModels faulty = *models_;
  faulty.model = with_faulty_pages(models_->model, PageFault::kResumeFromCodes);
  const HarnessResult got = run_engine(faulty, o, requests, 1);
  EXPECT_EQ(got.cached[2], 448);
  EXPECT_NE(got.outputs, wanted);
}

// Negative controls: each breaks law 1 on purpose and must be seen by the comparison above.
TEST_F(Law1, AWrongAcceptanceRuleIsCaught) {
  EngineOptions o = base();
  o.spec_type = spec_type("ngram");
  o.spec_draft_n_fixed = 4;
  HarnessModels m = *models_;
  m.model = with_faulty_logits(models_->model, LogitFault::kAcceptFirstDraft);
  EXPECT_NE(run_engine(m, o, requests(0.0f, 3), 1).outputs, reference(KvMode::kInt2, 0.0f));
}
TEST_F(Law1, ABatchDependentKernelIsCaught) {
  EngineOptions o = base();
  o.spec_type = spec_type("ngram");
  o.spec_draft_n_fixed = 4;
  HarnessModels m = *models_;
  m.model = with_faulty_logits(models_->model, LogitFault::kBatchDependent);
  EXPECT_NE(run_engine(m, o, requests(0.8f, 3), 3).outputs, reference(KvMode::kInt2, 0.8f));
}
// A page of the decoded part is read as INT2 only past the window: one page of window, so that this
// is soon.
TEST_F(Law1, ASealThatIncludesADraftedTokenIsCaught) {
  EngineOptions o = base();
  o.kv_window = 64;
  o.spec_type = spec_type("none");
  const auto wanted = run_engine(*models_, o, requests(0.0f, 2), 1).outputs;
  o.spec_type = spec_type("model");
  o.spec_draft_n_fixed = 8;
  HarnessModels m = *models_;
  m.draft = shallow_draft_;
  m.draft_calibration = models_->calibration;
  EXPECT_EQ(run_engine(m, o, requests(0.0f, 2), 1).outputs, wanted);
  m.model = with_faulty_pages(models_->model, PageFault::kSealDrafted);
  EXPECT_NE(run_engine(m, o, requests(0.0f, 2), 1).outputs, wanted);
}

}  // namespace
}  // namespace foretoken::testing
