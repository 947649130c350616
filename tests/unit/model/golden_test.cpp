// Every architecture against another implementation's logits, in float32 throughout.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <utility>
#include <vector>

#include "runtime/model/arch/architecture.h"
#include "runtime/model/model.h"
#include "tests/support/float_kv.h"
#include "tests/support/golden_models.h"
#include "tests/unit/model/reference_forward.h"

namespace foretoken::testing {
namespace {

using Rows = std::vector<std::vector<float>>;

struct Golden {
  std::vector<std::int32_t> positions;
  Rows logits;  // of these positions
};

Golden read_golden(const std::string& name) {
  std::ifstream in(FORETOKEN_GOLDEN_DIR "/arch/" + name + ".bin", std::ios::binary);
  std::int32_t sizes[2] = {};
  in.read(reinterpret_cast<char*>(sizes), sizeof sizes);
  Golden golden;
  golden.positions.resize(std::size_t(sizes[0]));
  in.read(reinterpret_cast<char*>(golden.positions.data()), 4 * sizes[0]);
  golden.logits.assign(std::size_t(sizes[0]), std::vector<float>(std::size_t(sizes[1])));
  for (auto& row : golden.logits) in.read(reinterpret_cast<char*>(row.data()), 4 * sizes[1]);
  EXPECT_TRUE(in.good()) << name << ": no golden file (tests/tools/model_golden.py)";
  return golden;
}

// Over all golden positions: squared error by squared size.
double nmse(const Golden& golden, const Rows& got) {
  double error = 0, size = 0;
  for (std::size_t i = 0; i < golden.positions.size(); ++i) {
    const std::vector<float>& row = got[std::size_t(golden.positions[i])];
    EXPECT_EQ(row.size(), golden.logits[i].size());
    for (std::size_t v = 0; v < row.size(); ++v) {
      error += std::pow(double(row[v]) - double(golden.logits[i][v]), 2);
      size += std::pow(double(golden.logits[i][v]), 2);
    }
  }
  return error / size;
}

Rows runtime_logits(const Model& model, const std::vector<TokenId>& tokens) {
  constexpr std::size_t kChunk = 17;
  kernels::ThreadPool pool(1);
  SequenceMemory memory = float_memory(model.kv_geometry(), std::ssize(tokens));
  const KvSequence sequence = memory.open().value();
  EXPECT_TRUE(memory.reserve(sequence, std::ssize(tokens)));
  auto workspace = model.make_workspace(kChunk, kChunk);
  const auto logits = model.make_logit_rows(kChunk);
  Rows out;
  for (std::size_t at = 0; at < tokens.size(); at += kChunk) {
    const std::size_t n = std::min(kChunk, tokens.size() - at);
    std::vector<int> rows;
    for (std::size_t i = 0; i < n; ++i) rows.push_back(int(i));
    const KvRows group{sequence, std::int64_t(at), int(n), 0};
    ForwardBatch batch;
    batch.tokens = std::span(tokens).subspan(at, n);
    batch.sequences = {&group, 1};
    batch.logit_rows = rows;
    batch.logits = logits.get();
    model.forward(batch, memory, *workspace, pool);
    for (std::size_t i = 0; i < n; ++i) {
      const std::span<const float> row = logits->host_row(int(i));
      out.emplace_back(row.begin(), row.end());
    }
  }
  return out;
}

std::shared_ptr<const Model> load(const TemporaryDirectory& folder, const TinyModelOptions& o) {
  write_tiny_model(folder.file("m.gguf"), o);
  auto model = Model::load(folder.file("m.gguf"), {.threads = 1});
  EXPECT_TRUE(model) << model.error().message;
  return model ? *model : nullptr;
}

// Float32 sums of another order: 2^-24 each, through two layers.
constexpr double kAsOneModel = 1e-9, kAnotherModel = 1e-3;

class GoldenModels : public ::testing::TestWithParam<GoldenModel> {};
INSTANTIATE_TEST_SUITE_P(All, GoldenModels, ::testing::ValuesIn(golden_models()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(GoldenModels, LogitsAreTheOtherImplementations) {
  TemporaryDirectory folder;
  const auto model = load(folder, GetParam().options);
  ASSERT_TRUE(model);
  const Golden golden = read_golden(GetParam().name);
  const double runtime = nmse(golden, runtime_logits(*model, golden_tokens()));
  EXPECT_LE(runtime, kAsOneModel);
  // The reference of the other tests is on trial here too.
  EXPECT_LE(nmse(golden, reference_logits(model->file(), model->config(), golden_tokens())),
            kAsOneModel);
  RecordProperty("nmse", fmt::format("{:.1e}", runtime));
}

// Negative control: the same weights without one thing that the architecture has.
TEST(GoldenControl, WithoutNormsOfQAndKItIsAnotherModel) {
  TemporaryDirectory folder;
  const GoldenModel* qwen3 = nullptr;
  for (const GoldenModel& m : golden_models())
    if (m.name == std::string("qwen3")) qwen3 = &m;
  ASSERT_TRUE(qwen3);
  const auto model = load(folder, qwen3->options);
  ASSERT_TRUE(model);
  // Qwen 2 with biases of 0 is Qwen 3 without these norms.
  TinyModelOptions without = qwen3->options;
  without.architecture = "qwen2";
  without.first = [&](GgufWriter& w) {
    for (const GgufTensor& t : model->file().tensors()) {
      if (t.name.find("_norm.weight") != std::string::npos && t.shape[0] == 32) continue;
      std::vector<std::uint8_t> bytes(t.data.size());
      std::memcpy(bytes.data(), t.data.data(), bytes.size());
      w.add_raw_tensor(t.name, t.shape, t.ggml_type, std::move(bytes));
    }
    for (int l = 0; l < without.n_layers; ++l) {
      for (const auto& [name, n] : {std::pair{"q", 128}, {"k", 64}, {"v", 64}}) {
        w.add_tensor("blk." + std::to_string(l) + ".attn_" + name + ".bias", {n},
                     std::vector<float>(std::size_t(n)));
      }
    }
  };
  const auto other = load(folder, without);
  ASSERT_TRUE(other);
  EXPECT_GT(nmse(read_golden("qwen3"), runtime_logits(*other, golden_tokens())), kAnotherModel);
}

TEST(GoldenControl, WithoutScaledRotationItIsAnotherModel) {
  TemporaryDirectory folder;
  const auto plain = load(folder, golden_models().front().options);
  ASSERT_TRUE(plain);
  const Rows logits = runtime_logits(*plain, golden_tokens());
  for (const char* name :
       {"llama_factors", "llama_linear", "llama_linear_untyped", "llama_yarn", "llama_longrope"})
    EXPECT_GT(nmse(read_golden(name), logits), kAnotherModel) << name;
}

TEST(GoldenControl, EveryArchitectureIsCovered) {
  for (const Architecture* a : architectures()) {
    EXPECT_TRUE(std::ranges::any_of(golden_models(), [&](const GoldenModel& m) {
      return m.options.architecture == a->name;
    })) << a->name;
  }
}

}  // namespace
}  // namespace foretoken::testing
