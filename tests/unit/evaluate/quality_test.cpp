// The instruments of `foretoken evaluate --quality` on a small random model: what they must say of
// bf16 against itself, of a mode that errs, and where the needles lie.
#include "runtime/evaluate/quality.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>
#include <random>
#include <set>

#include "runtime/evaluate/needles.h"
#include "runtime/evaluate/quality_report.h"
#include "runtime/model/model.h"
#include "runtime/text/tokenizer.h"
#include "tests/support/gguf_writer.h"

namespace foretoken {
namespace {

constexpr std::string_view kLines =
    "It rained all morning.\n\nThe ferry was late, and nobody said why; people read the timetable "
    "as if it could be persuaded.\nThen it came.\n";

class QualityTest : public ::testing::Test {
 protected:
  void SetUp() override {
    testing::write_tiny_model(folder_.file("tiny.gguf"), {});
    auto model = Model::load(folder_.file("tiny.gguf"), {});
    ASSERT_TRUE(model) << model.error().message;
    model_ = *model;
    auto tokenizer = Tokenizer::from_gguf(model_->file());
    ASSERT_TRUE(tokenizer) << tokenizer.error().message;
    tokenizer_ = std::move(*tokenizer);
  }
  KvQualityWindow random_window(std::size_t n, std::uint64_t seed) {
    std::mt19937_64 random(seed);
    KvQualityWindow window{"random", std::vector<TokenId>(n)};
    for (TokenId& token : window.tokens) token = static_cast<TokenId>(random() % 256);
    return window;
  }
  testing::TemporaryDirectory folder_;
  std::shared_ptr<const Model> model_;
  std::unique_ptr<Tokenizer> tokenizer_;
  kernels::ThreadPool pool_{2};
};

TEST_F(QualityTest, NothingIsLostAgainstItselfAndAnErringModeLosesEverywhere) {
  const std::vector<KvQualityWindow> windows{random_window(800, 1), random_window(700, 2)};
  const std::vector<KvQualityCase> cases{
      {"again", KvMode::kBf16, nullptr},
      {"naive", KvMode::kInt2, KvCalibration::naive(model_->kv_geometry())}};
  const auto q = measure_kv_quality(*model_, windows, cases, {.timed_steps = 2}, pool_, nullptr);
  ASSERT_TRUE(q) << q.error().message;
  ASSERT_EQ(q->size(), 3u);
  for (const KvQuality& same : {(*q)[0], (*q)[1]}) {
    EXPECT_EQ(same.all.n_scored, 800 - 512 - 1 + 700 - 512 - 1);
    EXPECT_EQ(same.all.kl.value, 0);
    EXPECT_EQ(same.all.perplexity_change.value, 0);
    EXPECT_EQ(same.all.same_top.value, 1);
    EXPECT_EQ(same.sealed_page_reads, 0);
  }
  const KvQuality& naive = (*q)[2];
  EXPECT_GT(naive.sealed_page_reads, 0);
  ASSERT_EQ(naive.windows.size(), 2u);
  for (const KvQualityFigures& window : naive.windows) {
    EXPECT_GT(window.kl.value, 0);
    EXPECT_GT(window.kl.standard_error, 0);
    EXPECT_LT(window.same_top.value, 1);
  }
  // The whole is the windows' mean by predictions.
  const auto &a = naive.windows[0], &b = naive.windows[1];
  EXPECT_NEAR(naive.all.kl.value,
              (a.kl.value * double(a.n_scored) + b.kl.value * double(b.n_scored)) /
                  double(a.n_scored + b.n_scored),
              1e-12);
  EXPECT_NEAR(naive.all.perplexity / naive.all.perplexity_bf16 - 1,
              naive.all.perplexity_change.value, 1e-9);
  EXPECT_EQ(naive.context_tokens, 800);
  EXPECT_LT(naive.sealed_bytes_per_token, 0.25 * (*q)[0].sealed_bytes_per_token);
  EXPECT_LT(naive.allocated_bytes, (*q)[0].allocated_bytes);
  EXPECT_GE(static_cast<double>((*q)[0].allocated_bytes), 800 * (*q)[0].sealed_bytes_per_token);
}

TEST_F(QualityTest, ShortWindowsAreRefusedByName) {
  const std::vector<KvQualityWindow> windows{random_window(513, 1)};
  const auto q = measure_kv_quality(*model_, windows, {}, {}, pool_, nullptr);
  ASSERT_FALSE(q);
  EXPECT_THAT(q.error().message,
              ::testing::HasSubstr("random has 513 tokens, wanted at least 514"));
}

// Facts of a context, read back from its text.
using Thing = std::array<std::string, 3>;
std::map<Thing, std::string> facts_of(const std::string& text) {
  std::map<Thing, std::string> facts;
  const std::string head = "The number of the ";
  for (std::size_t at = text.find(head); at != std::string::npos; at = text.find(head, at + 1)) {
    char colour[16], thing[16], place[16], number[16];
    EXPECT_EQ(std::sscanf(text.c_str() + at, "The number of the %15s %15s in the %15s is %5[0-9].",
                          colour, thing, place, number),
              4);
    EXPECT_TRUE(facts.emplace(Thing{colour, thing, place}, number).second) << "said twice";
  }
  return facts;
}

TEST_F(QualityTest, EveryNeedleHasNearDuplicatesAndLiesInSealedPages) {
  for (const std::int64_t length : {2048, 6000}) {
    const auto context = make_needle_context(*tokenizer_, kLines, length, {}, 7);
    ASSERT_TRUE(context) << context.error().message;
    EXPECT_LE(context->tokens.size() + context->questions[0].prompt.size() +
                  context->questions[0].answer.size(),
              static_cast<std::size_t>(length));
    EXPECT_GT(context->tokens.size(), static_cast<std::size_t>(length) - 256);
    const auto facts = facts_of(tokenizer_->decode(context->tokens));
    EXPECT_EQ(facts.size(), static_cast<std::size_t>(context->n_facts));
    std::set<std::string> asked;
    for (const auto& question : context->questions) {
      // Read as sealed by every row of the question.
      EXPECT_GE(question.position, 64);
      EXPECT_LT(question.position + 64,
                static_cast<std::int64_t>(context->tokens.size()) / 64 * 64 - 256 + 64);
      const std::string prompt = tokenizer_->decode(question.prompt),
                        answer = tokenizer_->decode(question.answer);
      EXPECT_TRUE(asked.insert(prompt).second) << prompt;
      const auto said = facts_of(prompt + answer + ".");
      ASSERT_EQ(said.size(), 1u) << prompt << answer;
      const auto& [thing, number] = *said.begin();
      ASSERT_TRUE(facts.contains(thing)) << prompt;
      EXPECT_EQ(facts.at(thing), number);
      int near = 0;
      for (const auto& [other, its] : facts) {
        int differ = 0;
        for (int i = 0; i < 3; ++i) differ += thing[i] != other[i];
        if (differ == 1 && its != number && its.substr(0, 2) == number.substr(0, 2)) ++near;
      }
      EXPECT_GE(near, 1) << prompt;
    }
  }
}

TEST_F(QualityTest, NeedlesFollowFromTheirSeed) {
  const auto a = make_needle_context(*tokenizer_, kLines, 2048, {}, 7),
             b = make_needle_context(*tokenizer_, kLines, 2048, {}, 7),
             c = make_needle_context(*tokenizer_, kLines, 2048, {}, 8);
  ASSERT_TRUE(a && b && c);
  EXPECT_EQ(a->tokens, b->tokens);
  EXPECT_NE(a->tokens, c->tokens);
  const auto shorter = make_needle_context(*tokenizer_, kLines, 700, {}, 7);
  ASSERT_FALSE(shorter);
  EXPECT_THAT(shorter.error().message, ::testing::HasSubstr("too short"));
}

TEST_F(QualityTest, AnAnswerIsFoundWhereGreedyDecodingGivesItAfterAnyOtherQuestions) {
  const auto context = make_needle_context(*tokenizer_, kLines, 2048, {}, 3);
  ASSERT_TRUE(context) << context.error().message;
  const std::vector<KvQualityCase> cases{
      {"int2", KvMode::kInt2, KvCalibration::data_free(model_->kv_geometry())}};
  // Greedy decoding by itself: context and prompt in a cache of their own, then three tokens.
  const std::vector<TokenId>& prompt = context->questions[0].prompt;
  auto caches = make_quality_caches(*model_, cases, {}, 2048, 64);
  ASSERT_TRUE(caches) << caches.error().message;
  const auto cache = std::move((*caches)[0]);
  cache->open();
  auto workspace = model_->make_workspace(64, 1);
  const auto logits = model_->make_logit_rows(1);
  std::int64_t position = 0;
  const auto forward = [&](std::span<const TokenId> tokens) {
    const auto n = static_cast<int>(tokens.size());
    const KvRows rows{0, position, n, 0};
    const int last = n - 1;
    ForwardBatch batch;
    batch.tokens = tokens;
    batch.sequences = {&rows, 1};
    batch.logit_rows = {&last, 1};
    batch.logits = logits.get();
    ASSERT_TRUE(cache->reserve(0, position + n));
    model_->forward(batch, *cache, *workspace, pool_);
    cache->commit(0, position += n);
  };
  const auto end = context->tokens.size();
  for (std::size_t at = 0; at < end; at += 64)
    forward(std::span(context->tokens).subspan(at, std::min<std::size_t>(64, end - at)));
  forward(prompt);
  std::vector<TokenId> greedy;
  for (int i = 0; i < 3; ++i) {
    const std::span<const float> row = logits->host_row(0);
    greedy.push_back(static_cast<TokenId>(std::ranges::max_element(row) - row.begin()));
    forward(std::span(greedy).last(1));
  }

  NeedleContext asked = *context;
  asked.questions.resize(3);
  std::vector<TokenId> other = greedy;
  other.back() = (other.back() + 1) % 256;
  asked.questions.push_back({prompt, other, 0});
  const auto none = measure_needles(*model_, std::span(&asked, 1), cases, {}, pool_, nullptr);
  asked.questions.push_back({prompt, greedy, 0});
  const auto one = measure_needles(*model_, std::span(&asked, 1), cases, {}, pool_, nullptr);
  ASSERT_TRUE(none && one);
  EXPECT_EQ(none->asked, 4);
  EXPECT_EQ(none->found[0], 0);  // a random model knows no fact
  EXPECT_EQ(one->found[0], 1);
}

TEST_F(QualityTest, ReportsSayWhatWasMeasured) {
  QualityReport report{.model = "A <model> & more", .fingerprint = "00ff", .windows = {"a.txt"}};
  KvQuality bf16{.name = "bf16", .mode = KvMode::kBf16, .sealed_bytes_per_token = 1000};
  bf16.all.perplexity = bf16.all.perplexity_bf16 = 10;
  bf16.windows = {bf16.all};
  bf16.context_tokens = 4096;
  KvQuality int2 = bf16;
  int2.name = "int2";
  int2.mode = KvMode::kInt2;
  int2.all.perplexity = 10.1;
  int2.all.perplexity_change = {0.01, 0.002};
  int2.all.kl = {0.0123, 0.0007};
  int2.all.same_top = {0.95, 0.01};
  int2.sealed_bytes_per_token = 140;
  report.modes = {bf16, int2};
  report.needles = {{1024, 64, {64, 62}}, {4096, 50, {50, 25}}};

  const std::string table = quality_table(report);
  for (const char* part : {"needles 1K", "62 of 64", "25 of 50", "+1.00 ± 0.20", "0.0123 ± 0.0007",
                           "95.00 ± 1.00", "140"})
    EXPECT_THAT(table, ::testing::HasSubstr(part));
  const auto json = quality_json(report);
  const auto& mode = json.at("modes").at(1);
  EXPECT_EQ(json.at("schema"), "foretoken.kv_quality/1");
  EXPECT_EQ(mode.at("mode"), "int2");
  EXPECT_DOUBLE_EQ(mode.at("kl").at("value").as_double(), 0.0123);
  EXPECT_EQ(mode.at("needles").at(1).at("found"), 25);
  EXPECT_EQ(mode.at("windows").at(0).at("text"), "a.txt");
  const std::string svg = quality_svg(report);
  EXPECT_THAT(svg, ::testing::HasSubstr("A &lt;model&gt; &amp; more"));
  EXPECT_THAT(svg, ::testing::HasSubstr("int2, 4096 tokens: 25 of 50"));
  EXPECT_THAT(svg, ::testing::HasSubstr("KL 0.01230 ± 0.00070"));
  EXPECT_EQ(svg.find("nan"), std::string::npos);
}

}  // namespace
}  // namespace foretoken
