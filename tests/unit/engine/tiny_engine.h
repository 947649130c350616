// A small random model, three untrained heads of both architectures and a draft: everything the
// engine can be asked to run.
#pragma once

#include <gtest/gtest.h>

#include "foretoken/kernels/isa.h"
#include "tests/support/engine_harness.h"
#include "tests/support/gguf_writer.h"

namespace foretoken::testing {

class TinyEngine : public ::testing::Test {
 protected:
  void SetUp() override {
    TinyModelOptions tiny;
    if (kernels::active_isa() == kernels::Isa::kScalar) {  // the slow truth: a smaller model still
      tiny.n_layers = 2;
      tiny.n_heads = 2;
      tiny.n_kv_heads = 1;
      tiny.hidden = 64;
      tiny.ffn = 64;
    }
    write_tiny_model(directory_.file("target.gguf"), tiny);
    auto model = Model::load(directory_.file("target.gguf"), {.threads = 1});
    ASSERT_TRUE(model) << model.error().message;
    models_.model = *model;
    auto draft = Model::load(directory_.file("target.gguf"), {.threads = 1, .drop_last_layers = 1});
    ASSERT_TRUE(draft) << draft.error().message;
    models_.draft = *draft;
    models_.calibration = KvCalibration::data_free((*model)->kv_geometry());
    models_.draft_calibration = KvCalibration::data_free((*draft)->kv_geometry());
    const std::vector<TokenId> text = prompt(400);
    for (std::uint64_t i = 0; i < 2; ++i)
      heads_.push_back(untrained_head(models_.model, text, 64, 192, 21 + i, 10 + i));
    eagle_ = untrained_eagle3(models_.model, text, 192, 23, 12);
  }
  static std::vector<TokenId> prompt(int n, int salt = 0) {
    std::vector<TokenId> tokens;
    for (int i = 0; i < n; ++i) tokens.push_back((i * 7 + salt + (i % 5) * 31) % 250);
    return tokens;
  }
  static EngineOptions options() {
    EngineOptions o;
    o.threads = 1;  // a tiny model's layers are shorter than handing them to a second thread
    o.max_model_len = 1024;
    o.max_num_seqs = 4;
    o.control_fraction = 0;
    return o;
  }
  TemporaryDirectory directory_;
  HarnessModels models_;
  std::vector<std::shared_ptr<const LearnedWeights>> heads_;  // two, untrained
  std::shared_ptr<const LearnedWeights> eagle_;               // likewise
};

}  // namespace foretoken::testing
