// A fixture with the embedding and output rows of a tiny model of random weights.
#pragma once

#include <gtest/gtest.h>

#include "runtime/model/vocabulary_rows.h"
#include "tests/support/gguf_writer.h"

namespace foretoken::trainer {

class TinyVocabulary : public ::testing::Test {
 protected:
  static constexpr std::int64_t kHidden = 128;

  void SetUp() override {
    foretoken::testing::TinyModelOptions model;
    model.hidden = int(kHidden);
    foretoken::testing::write_tiny_model(folder_.file("tiny.gguf"), model);
    auto rows = VocabularyRows::open(folder_.file("tiny.gguf"));
    ASSERT_TRUE(rows) << rows.error().message;
    rows_ = *rows;
  }

  foretoken::testing::TemporaryDirectory folder_;
  std::shared_ptr<const VocabularyRows> rows_;
};

}  // namespace foretoken::trainer
