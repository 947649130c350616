// Tiny random models whose logits another implementation has computed: tests/golden/arch/NAME.bin,
// made by tests/tools/model_golden.py. One row a case; together they cover the architectures and
// what stretches rotary embeddings.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "foretoken/protocol/ids.h"
#include "tests/support/gguf_writer.h"

namespace foretoken::testing {

struct GoldenModel {
  const char* name;
  TinyModelOptions options;
};
std::span<const GoldenModel> golden_models();

// The tokens of all cases.
std::vector<TokenId> golden_tokens();

}  // namespace foretoken::testing
