// A fixture of engine runs on a small real model, loaded once a suite: the suite's own
// SetUpTestSuite calls load(). Where the model is not at hand, the tests say that they are skipped.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/support/engine_harness.h"
#include "tests/support/real_model.h"
#include "tests/support/test_files.h"

namespace foretoken::testing {

class SmallModel : public ::testing::Test {
 protected:
  static constexpr const char* kModel = "smollm2-135m-instruct-q4_1.gguf";

  // With models_ and prompts_, the texts as a user's messages. Null: there is no such model.
  static std::optional<RealModel> load(const std::vector<std::string>& texts) {
    const auto path = find_test_model(kModel);
    if (!path) return std::nullopt;
    RealModel real = load_real_model(*path);
    EXPECT_TRUE(real.tokenizer);
    if (!real.tokenizer) return std::nullopt;
    models_ = std::make_unique<HarnessModels>();
    models_->model = real.model;
    prompts_ = real.chat_prompts(texts);
    return real;
  }
  // The prompts one after the other, for what is to know their vocabulary.
  static std::vector<TokenId> all_tokens() {
    std::vector<TokenId> all;
    for (const auto& prompt : prompts_) all.insert(all.end(), prompt.begin(), prompt.end());
    return all;
  }
  static void TearDownTestSuite() {
    models_.reset();
    prompts_.clear();
  }
  void SetUp() override {
    if (const auto path = find_test_model(kModel); !path) FORETOKEN_SKIP_FOR_WANT_OF(path.error());
    ASSERT_TRUE(models_);
  }

  static inline std::unique_ptr<HarnessModels> models_;
  static inline std::vector<std::vector<TokenId>> prompts_;
};

}  // namespace foretoken::testing
