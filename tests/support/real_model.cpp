#include "tests/support/real_model.h"

#include <gtest/gtest.h>

#include "runtime/text/chat_template.h"

namespace foretoken::testing {
namespace {

template <class T>
T value_or_fail(Result<T> result) {
  if (!result) {
    ADD_FAILURE() << result.error().message;
    return {};
  }
  return std::move(result).value();
}

}  // namespace

std::vector<std::vector<TokenId>> RealModel::chat_prompts(
    const std::vector<std::string>& texts) const {
  const auto source = model->file().get_string("tokenizer.chat_template");
  const auto chat = value_or_fail(ChatTemplate::parse(source.value_or(""), "", ""));
  std::vector<std::vector<TokenId>> prompts;
  for (const std::string& text : texts) {
    if (!chat) break;
    const std::string rendered = value_or_fail(chat->render({{"user", text}}, true));
    prompts.push_back(value_or_fail(tokenizer->encode(rendered, true)));
  }
  return prompts;
}

std::shared_ptr<const KvCalibration> RealModel::calibrate(const KvCalibrateOptions& options,
                                                          kernels::ThreadPool& pool) const {
  const auto tokens = value_or_fail(tokenizer->encode(kv_calibration_text(), false));
  return value_or_fail(calibrate_kv(*model, tokens, options, pool, nullptr));
}

RealModel load_real_model(const std::string& path) {
  RealModel real;
  real.model = value_or_fail(Model::load(path, {}));
  if (real.model) real.tokenizer = value_or_fail(Tokenizer::from_gguf(real.model->file()));
  return real;
}

}  // namespace foretoken::testing
