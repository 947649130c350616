// What KV modes cost real models, through the real cache, on text and code that the calibration has
// not seen, against bf16 pages: windows of 2K on the small model in every run, and of 4K, three of
// text and three of code, on each model with `tests/run --full`, with needles. The negative
// controls must lose what the paired transform keeps, so that a path which silently stayed in 16
// bits would fail here.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "runtime/evaluate/needles.h"
#include "runtime/evaluate/quality_report.h"
#include "tests/support/real_model.h"
#include "tests/support/test_files.h"

namespace foretoken {
namespace {

struct Subject : testing::RealModel {
  std::shared_ptr<const KvCalibration> calibration;
  kernels::ThreadPool pool{static_cast<int>(std::max(1u, std::thread::hardware_concurrency()))};
};

void load(const std::string& path, Subject& subject) {
  static_cast<testing::RealModel&>(subject) = testing::load_real_model(path);
  ASSERT_TRUE(subject.tokenizer);
  subject.calibration = subject.calibrate({}, subject.pool);
  ASSERT_TRUE(subject.calibration);
}

std::string read(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  EXPECT_TRUE(in) << file;
  return {std::istreambuf_iterator<char>(in), {}};
}

// The middle of a file.
KvQualityWindow window_of(const Subject& subject, const std::string& file, std::size_t length) {
  auto tokens = subject.tokenizer->encode(read(file), false);
  EXPECT_TRUE(tokens) << file;
  if (!tokens) return {file, {}};
  const std::size_t n = std::min(tokens->size(), length), first = (tokens->size() - n) / 2;
  return {file, {tokens->begin() + first, tokens->begin() + first + n}};
}

// Results by case: [0] is bf16.
std::vector<KvQuality> measure(Subject& subject, const std::vector<KvQualityWindow>& windows,
                               const std::vector<KvQualityCase>& cases) {
  auto result = measure_kv_quality(*subject.model, windows, cases, {}, subject.pool, nullptr);
  EXPECT_TRUE(result) << result.error().message;
  std::printf("%s", quality_table({.modes = *result}).c_str());
  for (std::size_t i = 1; i < result->size(); ++i)
    EXPECT_GT((*result)[i].sealed_page_reads, 0) << (*result)[i].name;
  // Nothing is lost against itself.
  EXPECT_EQ((*result)[0].all.kl.value, 0);
  EXPECT_EQ((*result)[0].all.same_top.value, 1);
  return std::move(*result);
}

// What a mode may cost at most.
struct Gate {
  double change, kl;  // of perplexity; nats
};
void expect_within(const KvQuality& q, Gate gate) {
  EXPECT_LE(q.all.perplexity_change.value, gate.change) << q.name;
  EXPECT_LE(q.all.kl.value, gate.kl) << q.name;
  EXPECT_GT(q.all.kl.value, 0) << q.name;  // it is not bf16
}

TEST(KvQualityTest, SmolLM2) {
  const auto path = testing::find_test_model("smollm2-135m-instruct-q4_1.gguf");
  if (!path) FORETOKEN_SKIP_FOR_WANT_OF(path.error());
  Subject subject;
  ASSERT_NO_FATAL_FAILURE(load(*path, subject));
  const KvGeometry geometry = subject.model->kv_geometry();
  const auto q = measure(subject,
                         {window_of(subject, testing::corpus_path("prose.txt"), 2048),
                          window_of(subject, testing::corpus_path("code.txt"), 2048)},
                         {{"int2", KvMode::kInt2, subject.calibration},
                          {"naive", KvMode::kInt2, KvCalibration::naive(geometry)}});
  EXPECT_GT(q[1].all.n_scored, 2500);
  expect_within(q[1], {0.06, 0.05});
  EXPECT_GT(q[1].all.kl.value, 1e-4);
  EXPECT_GT(q[2].all.kl.value, 10 * q[1].all.kl.value);
  EXPECT_GT(q[2].all.perplexity_change.value, 0.2);
}

// ---- --full

// Long texts that every Debian 12 machine with the build's own packages has: an article, a manual,
// a licence; Python, C++, CMake. Neither the bundled calibration nor the trials used them.
const std::vector<std::string> kTexts{"/usr/share/perl/5.36.0/Locale/Maketext/TPJ13.pod",
                                      "/usr/share/cmake-3.25/Help/manual/cmake-buildsystem.7.rst",
                                      "/usr/share/common-licenses/GFDL-1.3",
                                      "/usr/lib/python3.11/tarfile.py",
                                      "/usr/include/c++/12/bits/locale_facets_nonio.h",
                                      "/usr/share/cmake-3.25/Modules/FetchContent.cmake"};

// The same for all models. Part of a KL is what any change at all does to activations that are
// rounded to 8 bits: int8's, whose own error is nothing. (SmolLM2, int8 and int4: .0033 and .0059;
// with the same weights in fp16, whose inputs stay floats, .0001 and .0019. That model is made by
// tests/tools/dequantise_gguf.py.) So int4 is asked for what it has beyond int8.
constexpr Gate kInt8{0.001, 0.005}, kInt4{0.005, 0.005};

void full(const std::string& file, Gate int2, bool key_biases) {
  const auto path = testing::find_test_model(file);
  if (!path) FORETOKEN_SKIP_FOR_WANT_OF(path.error());
  for (const std::string& text : kTexts) {
    if (!std::filesystem::exists(text)) {
      FORETOKEN_SKIP_FOR_WANT_OF(
          (Error{ErrorCode::kNotFound, "there is no " + text + ": Debian 12 has it"}));
    }
  }
  Subject subject;
  ASSERT_NO_FATAL_FAILURE(load(*path, subject));
  const KvGeometry geometry = subject.model->kv_geometry();
  const auto mode = [&](KvMode m) {
    return KvQualityCase{std::string(kv_mode_name(m)), m, subject.calibration};
  };
  const KvQualityCase naive{"naive", KvMode::kInt2, KvCalibration::naive(geometry)};
  std::vector<KvQualityWindow> windows;
  for (const std::string& text : kTexts) {
    windows.push_back(window_of(subject, text, 4096));
    ASSERT_EQ(windows.back().tokens.size(), 4096u) << text;
  }
  const auto q =
      measure(subject, windows, {mode(KvMode::kInt2), mode(KvMode::kInt4), mode(KvMode::kInt8)});
  expect_within(q[1], int2);
  EXPECT_GT(q[1].all.kl.value, 1e-4);
  expect_within(q[2], {kInt4.change, kInt4.kl + q[3].all.kl.value});
  expect_within(q[3], kInt8);

  // What rotates keys with large biases loses the model; on models without, int2's controls still
  // lose more than int2 may.
  std::vector<KvQualityCase> controls{
      naive, {"hadamard", KvMode::kInt2, KvCalibration::hadamard(geometry)}};
  if (key_biases) controls.push_back(mode(KvMode::kInt4Saw));
  const auto control =
      measure(subject, {window_of(subject, kTexts[0], 2048), window_of(subject, kTexts[3], 2048)},
              controls);
  for (std::size_t i = 1; i < control.size(); ++i)
    EXPECT_GT(control[i].all.kl.value, key_biases ? 1.0 : int2.kl) << control[i].name;

  const std::vector<KvQualityCase> cases{
      {"bf16", KvMode::kBf16, nullptr}, mode(KvMode::kInt2), naive};
  for (const std::int64_t length : {1024, 4096}) {
    std::vector<NeedleContext> contexts;
    std::size_t asked = 0;
    while (asked < 60) {
      auto context = make_needle_context(*subject.tokenizer, read(kTexts[contexts.size() % 3]),
                                         length, {}, contexts.size() + 1);
      ASSERT_TRUE(context) << context.error().message;
      asked += context->questions.size();
      contexts.push_back(std::move(*context));
    }
    const auto needles =
        measure_needles(*subject.model, contexts, cases, {}, subject.pool, nullptr);
    ASSERT_TRUE(needles) << needles.error().message;
    std::printf("needles at %d: of %d found bf16 %d, int2 %d, naive %d\n", static_cast<int>(length),
                needles->asked, needles->found[0], needles->found[1], needles->found[2]);
    // Where bf16 can: the small models cannot tell so many neighbours apart.
    if (needles->found[0] >= 0.8 * needles->asked) {
      EXPECT_GE(needles->found[1], needles->found[0] - 0.05 * needles->asked) << length;
      EXPECT_LT(needles->found[2], 0.5 * needles->found[0]) << length;
    }
  }
}

TEST(KvQualityFull, SmolLM2) { full("smollm2-135m-instruct-q4_1.gguf", {0.06, 0.05}, false); }
TEST(KvQualityFull, Qwen25Coder05B) {
  full("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", {0.02, 0.04}, true);
}
TEST(KvQualityFull, Qwen25Coder15B) {
  full("qwen2.5-coder-1.5b-instruct-q4_k_m.gguf", {0.025, 0.02}, true);
}

}  // namespace
}  // namespace foretoken
