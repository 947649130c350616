// What the service serves: a loaded model and its engine. Published once loading is done;
// everything in it outlives the HTTP server's threads (the command line destroys them in that
// order).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/engine/engine.h"
#include "runtime/observe/stats.h"
#include "runtime/text/chat_template.h"
#include "runtime/text/tokenizer.h"

namespace foretoken {

// What the routes may know and ask of the learned speculator and of the link to the trainer. Any
// thread; the actions may wait for the disk.
class LearnedControl {
 public:
  virtual ~LearnedControl() = default;
  virtual LinkStats link_stats() const = 0;
  virtual void count_opted_out() = 0;  // a choice that asked not to be traced
  virtual SpeculatorState state() const = 0;
  virtual Status rollback() = 0;  // kNotFound: nothing was learned
  virtual void freeze() = 0;
  virtual void unfreeze() = 0;
};

struct Backend {
  Engine* engine = nullptr;
  LearnedControl* learned = nullptr;  // null: no link, nothing to tell of it
  const Tokenizer* tokenizer = nullptr;
  const ChatTemplate* chat_template = nullptr;  // null: the model has none
  std::vector<std::string> names;               // the first is the one answered with; never empty
  std::string architecture, fingerprint_hex, kv_mode, isa;
  std::int64_t n_vocab = 0, n_ctx = 0, n_ctx_train = 0, weight_bytes = 0, n_params = 0;
  std::int64_t created_unix_s = 0;
};

}  // namespace foretoken
