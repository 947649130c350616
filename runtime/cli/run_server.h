// A whole server from flags to exit: what `serve` runs, and `up` with a trainer beside it.
#pragma once

#include <functional>

#include "runtime/cli/serve_flags.h"

namespace foretoken {

struct ServerHooks {
  std::function<void()> ready;     // once requests are served
  std::function<void()> stopping;  // the first SIGTERM or SIGINT, before draining
};

// Blocks until SIGTERM or SIGINT and the drain are over. The process's exit status.
int run_server(const ServeFlags& flags, const ServerHooks& hooks);

// Blocks SIGTERM and SIGINT for this thread and those it starts, so that run_server can wait for
// them.
void block_stop_signals();

}  // namespace foretoken
