// What the service serves: a loaded model and its engine. Published once loading is done;
// everything in it outlives the HTTP server's threads (the command line destroys them in that
// order).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/engine/engine.h"
#include "runtime/text/chat_template.h"
#include "runtime/text/tokenizer.h"

namespace foretoken {

struct Backend {
  Engine* engine = nullptr;
  const Tokenizer* tokenizer = nullptr;
  const ChatTemplate* chat_template = nullptr;  // null: the model has none
  std::vector<std::string> names;               // the first is the one answered with; never empty
  std::string architecture, fingerprint_hex, kv_mode, isa;
  std::int64_t n_vocab = 0, n_ctx = 0, n_ctx_train = 0, weight_bytes = 0, n_params = 0;
  std::int64_t created_unix_s = 0;
};

}  // namespace foretoken
