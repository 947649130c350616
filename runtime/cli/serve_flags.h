// The flags of `foretoken serve` (and, handed through, of `up`), checked and typed.
#pragma once

#include <string>
#include <vector>

#include "foretoken/protocol/keys.h"
#include "runtime/cli/flags.h"
#include "runtime/engine/engine.h"
#include "runtime/serve/http_server.h"

namespace foretoken {

struct ServeFlags {
  std::string model, spec_draft_model, spec_head;
  std::vector<std::string> served_model_names;
  std::string api_key_file, state_dir, trace_dir;
  std::string traces_endpoint, weights_endpoint;  // empty: no trainer
  std::string keys;                               // empty: <state_dir>/keys, made when needed
  std::string device = "cpu", log_level = "info";
  std::string calibration_text, kv_calibration, draft_kv_calibration;  // files
  bool calibration = true, check = false;
  double canary_fraction = 0.25, retention_hours = 0;
  std::size_t trace_dir_max_bytes = 0;
  double shutdown_timeout_s = 30, health_stall_timeout_s = 30;
  EngineOptions engine;
  HttpServerOptions http;

  void add_to(Flags& flags);
  // After parsing: enumerations, sizes and combinations. Errors name the flag, what was found and
  // wanted.
  Status finish();
  // Who is trusted. The folder in the state directory is made where a trainer is expected; one
  // that was named must be there. Without a trainer and without keys nobody is trusted.
  Result<ServerKeys> load_keys() const;
  std::string keys_folder() const { return keys.empty() ? state_dir + "/keys" : keys; }

 private:
  std::string kv_cache_dtype_ = "int2", draft_kv_cache_dtype_ = "int2", spec_type_ = "auto",
              spec_sampling_ = "invariant";
  std::string kv_cache_memory_ = "0", prefix_tail_memory_ = "0", max_body_ = "8M", trace_dir_max_bytes_ = "1G";
};

}  // namespace foretoken
