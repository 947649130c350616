// A real model as tests use it: weights, tokenizer, and what is made of them for a test. What does
// not come about fails the current test, and is null or empty.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/model/calibrate_kv.h"
#include "runtime/model/model.h"
#include "runtime/text/tokenizer.h"

namespace foretoken::testing {

struct RealModel {
  std::shared_ptr<const Model> model;
  std::unique_ptr<Tokenizer> tokenizer;

  // Each text as the one message of a user, by the model's own template, up to where it answers.
  std::vector<std::vector<TokenId>> chat_prompts(const std::vector<std::string>& texts) const;
  // From the bundled text.
  std::shared_ptr<const KvCalibration> calibrate(const KvCalibrateOptions& options,
                                                 kernels::ThreadPool& pool) const;
};

RealModel load_real_model(const std::string& path);

}  // namespace foretoken::testing
