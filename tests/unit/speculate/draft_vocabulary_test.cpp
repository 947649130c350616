#include "runtime/speculate/draft_vocabulary.h"

#include <gtest/gtest.h>

#include <numeric>

#include "tests/support/gguf_writer.h"

namespace foretoken::testing {
namespace {

class DraftVocabularyTest : public ::testing::Test {
 protected:
  static constexpr std::int64_t kTokens = 64;  // 48 by rank, 16 for those seen

  void SetUp() override {
    write_tiny_model(directory_.file("m.gguf"), {});
    auto model = Model::load(directory_.file("m.gguf"), {.threads = 1});
    ASSERT_TRUE(model) << model.error().message;
    model_ = *model;
    auto vocabulary = DraftVocabulary::create(model_, kTokens);
    ASSERT_TRUE(vocabulary) << vocabulary.error().message;
    vocabulary_ = std::move(*vocabulary);
  }
  // Every slot names a token, is the token's slot, and holds the token's row of the whole matrix.
  void expect_consistent() {
    const kernels::PackedMatrix& rows = vocabulary_->output();
    ASSERT_EQ(rows.n_out, kTokens);
    std::vector<float> got(std::size_t(rows.n_in)), wanted(got.size());
    for (std::int32_t slot = 0; slot < kTokens; ++slot) {
      const TokenId token = vocabulary_->tokens()[std::size_t(slot)];
      ASSERT_EQ(vocabulary_->slot(token), slot);
      kernels::dequantize_row(rows, slot, got.data());
      kernels::dequantize_row(model_->output_matrix(), token, wanted.data());
      ASSERT_EQ(got, wanted) << "slot " << slot;
    }
    int named = 0;
    for (TokenId t = 0; t < model_->config().n_vocab; ++t) named += vocabulary_->slot(t) >= 0;
    EXPECT_EQ(named, kTokens);
  }
  void see(TokenId first, int n) {
    std::vector<TokenId> tokens(static_cast<std::size_t>(n));
    std::iota(tokens.begin(), tokens.end(), first);
    vocabulary_->see(tokens);
  }

  TemporaryDirectory directory_;
  std::shared_ptr<const Model> model_;
  std::unique_ptr<DraftVocabulary> vocabulary_;
};

TEST_F(DraftVocabularyTest, BeginsWithTheLowestIds) {
  expect_consistent();
  EXPECT_EQ(vocabulary_->slot(kTokens - 1), kTokens - 1);
  EXPECT_LT(vocabulary_->slot(kTokens), 0);
  EXPECT_LT(vocabulary_->step_bytes(), model_->step_bytes());
}

TEST_F(DraftVocabularyTest, SeenTokensGetRowsAndTheOldestGiveTheirsUp) {
  see(200, 5);
  EXPECT_LT(vocabulary_->slot(200), 0) << "before refresh() the matrix is as it was";
  vocabulary_->refresh(1);
  expect_consistent();
  EXPECT_GE(vocabulary_->slot(200), 48);
  EXPECT_LT(vocabulary_->slot(48), 0) << "the first slot of the seen ones was given away";
  EXPECT_EQ(vocabulary_->slot(53), 53);

  see(100, 60);  // four times as many as there are slots
  for (int i = 0; i < 8; ++i) vocabulary_->refresh(1);
  expect_consistent();
  for (TokenId token = 200; token < 205; ++token) EXPECT_LT(vocabulary_->slot(token), 0);
  for (TokenId token = 144; token < 160; ++token) EXPECT_GE(vocabulary_->slot(token), 48);
  for (TokenId token = 0; token < 48; ++token) EXPECT_EQ(vocabulary_->slot(token), token);
}

TEST_F(DraftVocabularyTest, WhatHasARowOrWaitsForOneIsNotTakenTwice) {
  for (int i = 0; i < 3; ++i) see(300, 2);
  see(10, 20);
  vocabulary_->refresh(4);
  expect_consistent();
  EXPECT_EQ(vocabulary_->slot(300), 48);
  EXPECT_EQ(vocabulary_->slot(301), 49);
  EXPECT_EQ(vocabulary_->slot(50), 50);
}

}  // namespace
}  // namespace foretoken::testing
