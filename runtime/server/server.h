// A whole server in this process: a model and its engine, HTTP in front of it, the link to a
// trainer behind it. `foretoken serve` and `up` run one; so can a program of your own
// (tests/embedding).
// Owner: one thread makes, starts and stops it. What it returns references to lives from start() to
// stop(). Signals and the log are the program's: its threads take the signal mask of start()'s
// caller.
#pragma once

#include <functional>
#include <memory>

#include "runtime/model/model.h"
#include "runtime/serve/backend.h"
#include "runtime/server/server_options.h"

namespace foretoken {

class Server {
 public:
  using Options = ServerOptions;

  explicit Server(Options options);
  ~Server();  // stop()

  // Listens first, so that a port in use is known at once and /health can say "loading"; returns
  // when requests are served. Errors name the option. May be called again after an error or stop().
  Status start();
  // Refuses new requests and lets open ones finish, for at most finish_s and while `hurry` (may be
  // empty; asked every 20 ms) is false; cuts what is still open and ends. Idempotent.
  void stop(double finish_s = 0, const std::function<bool()>& hurry = {});

  bool running() const { return running_ != nullptr; }
  int port() const;
  int open_requests() const;  // being answered
  Engine& engine();
  const Model& model() const;
  const Model* draft_model() const;  // null: none
  const Backend& backend() const;
  const Options& options() const { return options_; }

 private:
  class Running;
  Options options_;
  std::unique_ptr<Running> running_;
};

// The model's own chat template; null where the file has none.
Result<std::unique_ptr<ChatTemplate>> load_chat_template(const GgufFile& file,
                                                         const Tokenizer& tokenizer);

}  // namespace foretoken
