// The oracle: a plain float forward pass over dequantised weights, one token after the other, no
// cache tricks, no quantised activations, nothing shared with the runtime but the file's own bytes.
#pragma once

#include <string>
#include <vector>

#include "runtime/files/gguf.h"
#include "runtime/model/model.h"

namespace foretoken::testing {

// Logits of every position: [tokens.size()][n_vocab].
std::vector<std::vector<float>> reference_logits(const GgufFile& file, const ModelConfig& config,
                                                 const std::vector<TokenId>& tokens);

}  // namespace foretoken::testing
