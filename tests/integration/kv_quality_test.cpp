// What INT2 pages cost a real model, through the real cache: text and code that the calibration has
// not seen, 2K windows, against bf16 pages. The negative controls must lose what the paired
// transform keeps, so that a path which silently stayed in 16 bits would fail here.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <thread>

#include "runtime/evaluate/quality.h"
#include "runtime/kv/calibrate.h"
#include "runtime/model/model.h"
#include "runtime/text/tokenizer.h"
#include "tests/support/gguf_writer.h"

namespace foretoken {
namespace {

constexpr std::size_t kWindow = 2048;

struct Subject {
  std::shared_ptr<const Model> model;
  std::unique_ptr<Tokenizer> tokenizer;
  std::shared_ptr<const KvCalibration> calibration;
  kernels::ThreadPool pool{static_cast<int>(std::max(1u, std::thread::hardware_concurrency()))};
};

void load(const std::string& path, Subject& subject) {
  auto model = Model::load(path, {});
  ASSERT_TRUE(model) << model.error().message;
  subject.model = *model;
  auto tokenizer = Tokenizer::from_gguf(subject.model->file());
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  subject.tokenizer = std::move(*tokenizer);
  const auto tokens = subject.tokenizer->encode(kv_calibration_text(), false);
  ASSERT_TRUE(tokens) << tokens.error().message;
  auto calibration = calibrate_kv(*subject.model, *tokens, {}, subject.pool, nullptr);
  ASSERT_TRUE(calibration) << calibration.error().message;
  subject.calibration = *calibration;
}

std::vector<TokenId> window_of(const Subject& subject, const std::string& file) {
  std::ifstream in(std::string(FORETOKEN_SOURCE_DIR) + "/" + file, std::ios::binary);
  const std::string text(std::istreambuf_iterator<char>(in), {});
  auto tokens = subject.tokenizer->encode(text, false);
  EXPECT_TRUE(tokens) << file;
  if (!tokens) return {};
  tokens->resize(std::min(tokens->size(), kWindow));
  EXPECT_GT(tokens->size(), 1800u) << file;
  return *tokens;
}

std::vector<KvQuality> measure(Subject& subject, const std::vector<KvQualityCase>& cases) {
  const std::vector<std::vector<TokenId>> windows{
      window_of(subject, "tests/integration/quality_prose.txt"),
      window_of(subject, "runtime/kv/kv_cache.cpp")};
  auto result = measure_kv_quality(*subject.model, windows, cases, {}, subject.pool, nullptr);
  EXPECT_TRUE(result) << result.error().message;
  for (const KvQuality& q : *result) {
    EXPECT_GT(q.int2_page_reads, 0) << q.name;
    EXPECT_GT(q.n_scored, 2500) << q.name;
    std::printf("%-10s perplexity %.3f -> %.3f (%+.2f %%), KL %.4f, same top %.3f\n",
                q.name.c_str(), q.perplexity_bf16, q.perplexity, 100 * q.perplexity_change(),
                q.mean_kl, q.same_top);
  }
  return std::move(*result);
}

TEST(KvQualityTest, SmolLM2) {
  const std::string path = testing::test_model("smollm2-135m-instruct-q4_1.gguf");
  if (path.empty()) GTEST_SKIP() << "no SmolLM2 in FORETOKEN_TEST_MODELS";
  Subject subject;
  ASSERT_NO_FATAL_FAILURE(load(path, subject));
  const KvGeometry geometry = subject.model->kv_geometry();
  const auto q =
      measure(subject, {{"int2", subject.calibration}, {"naive", KvCalibration::naive(geometry)}});
  EXPECT_LE(q[0].perplexity_change(), 0.06);
  EXPECT_LE(q[0].mean_kl, 0.05);
  EXPECT_GT(q[0].mean_kl, 1e-4);  // it is not bf16
  EXPECT_GT(q[1].mean_kl, 10 * q[0].mean_kl);
  EXPECT_GT(q[1].perplexity_change(), 0.2);
}

TEST(KvQualityTest, Qwen25Coder05B) {
  const std::string path = testing::test_model("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf");
  if (path.empty()) GTEST_SKIP() << "no Qwen2.5-Coder-0.5B in FORETOKEN_TEST_MODELS";
  Subject subject;
  ASSERT_NO_FATAL_FAILURE(load(path, subject));
  const KvGeometry geometry = subject.model->kv_geometry();
  const auto q = measure(subject, {{"int2", subject.calibration},
                                   {"naive", KvCalibration::naive(geometry)},
                                   {"hadamard", KvCalibration::hadamard(geometry)}});
  EXPECT_LE(q[0].perplexity_change(), 0.02);
  EXPECT_LE(q[0].mean_kl, 0.04);
  EXPECT_GT(q[0].mean_kl, 1e-4);
  EXPECT_GT(q[1].mean_kl, 1.0);
  EXPECT_GT(q[2].mean_kl, 1.0);
}

}  // namespace
}  // namespace foretoken
