// The flags of `foretoken serve` (and, handed through, of `up`), checked and typed.
#pragma once

#include <string>
#include <vector>

#include "runtime/cli/flags.h"
#include "runtime/server/server_options.h"

namespace foretoken {

struct ServeFlags {
  ServerOptions server;
  std::string device = "cpu", log_level = "info";
  bool check = false;
  double shutdown_timeout_s = 30;

  void add_to(Flags& flags);
  // After parsing: enumerations, sizes and combinations. Errors name the flag, what was found and
  // wanted.
  Status finish();

 private:
  std::string kv_cache_dtype_ = "int2", draft_kv_cache_dtype_ = "int2", spec_type_ = "auto",
              spec_sampling_ = "invariant";
  std::string kv_cache_memory_ = "0", prefix_tail_memory_ = "0", max_body_ = "8M",
              trace_dir_max_bytes_ = "1G";
};

}  // namespace foretoken
