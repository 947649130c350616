// What a server is started with: `foretoken serve` and `up` fill it from flags, an embedding
// program by hand. Plain values; the defaults are those of the command line.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "foretoken/protocol/keys.h"
#include "runtime/engine/engine.h"
#include "runtime/serve/http_server.h"

namespace foretoken {

// How far a task of start-up is, 0 to 1; tasks come one after another. On the caller's thread.
using TaskProgress = std::function<void(std::string_view task, double fraction)>;

struct ServerOptions {
  std::string model, spec_draft_model;            // GGUF files
  std::string spec_head;                          // a folder or a bundle (spec_head.h)
  std::vector<std::string> served_model_names;    // none: the model file's name
  std::string api_key_file;                       // empty: nobody is asked for a key
  std::string state_dir;                          // empty: the user's (state_folder.h)
  std::string keys;                               // empty: <state_dir>/keys, made when needed
  std::string traces_endpoint, weights_endpoint;  // both empty: no trainer
  std::string trace_dir;                          // empty: no segments on disk
  std::size_t trace_dir_max_bytes = std::size_t{1} << 30;
  double retention_hours = 0;  // 0: until there is no room
  double canary_fraction = 0.25;
  bool calibration = true;  // of the KV cache, at first start; false: the data-free recipe
  std::string calibration_text, kv_calibration,
      draft_kv_calibration;  // files; empty: bundled, kept
  double health_stall_timeout_s = 30;
  EngineOptions engine;
  HttpServerOptions http;
  TaskProgress progress;  // may be empty

  ServerOptions() { engine.plain_fraction = 0.05; }

  // Fills in what depends on other fields; an error names the flag, what was found and wanted.
  Status complete();
  std::string keys_folder() const { return keys.empty() ? state_dir + "/keys" : keys; }
  // Who is trusted. The folder in the state directory is made where a trainer is expected; one
  // that was named must be there. Without a trainer and without keys nobody is trusted.
  Result<ServerKeys> load_keys() const;
};

}  // namespace foretoken
