// The flags of `foretoken serve` (and, handed through, of `up`), checked and typed.
#pragma once

#include <string>
#include <vector>

#include "runtime/flags/flags.h"
#include "runtime/server/server_options.h"

namespace foretoken {

struct ServeFlags {
  ServerOptions server;
  std::string device = "cpu", log_level = "info";
  bool check = false;
  double shutdown_timeout_s = 30;

  void add_to(Flags& flags);
};

}  // namespace foretoken
