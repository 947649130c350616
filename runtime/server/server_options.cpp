#include "runtime/server/server_options.h"

#include <fmt/format.h>

#include "foretoken/protocol/state_folder.h"

namespace foretoken {

Status ServerOptions::complete() {
  const auto wrong = [](std::string message) {
    return Error{ErrorCode::kInvalidInput, std::move(message)};
  };
  if (model.empty()) return wrong("--model: missing, wanted a GGUF file");
  if (engine.spec_type.needs_draft_model() && spec_draft_model.empty())
    return wrong(
        fmt::format("--spec-type {}: wanted --spec-draft-model too", engine.spec_type.name));
  if (!spec_head.empty() && !engine.spec_type.has(SpeculatorKind::kHead))
    return wrong(fmt::format("--spec-head: found \"{}\", wanted --spec-type head or auto with it",
                             spec_head));
  if (traces_endpoint.empty() != weights_endpoint.empty())
    return wrong("--traces-endpoint and --weights-endpoint: wanted both or neither");
  if (engine.kv_sink < 0 || engine.kv_sink % 64 != 0)
    return wrong(fmt::format("--kv-sink: found {}, wanted a multiple of 64", engine.kv_sink));
  if (engine.kv_window < 64 || engine.kv_window % 64 != 0)
    return wrong(fmt::format("--kv-window: found {}, wanted a multiple of 64, at least 64",
                             engine.kv_window));
  if (state_dir.empty()) state_dir = default_state_root().string();
  if (served_model_names.empty()) {
    std::string name = model.substr(model.find_last_of('/') + 1);
    if (name.ends_with(".gguf")) name.resize(name.size() - 5);
    served_model_names.push_back(name);
  }
  return Ok{};
}

Result<ServerKeys> ServerOptions::load_keys() const {
  const KeyFolder folder(keys_folder());
  const bool trainer_expected = !traces_endpoint.empty();
  if (keys.empty() && trainer_expected) {
    if (auto s = folder.make(true, true); !s) return s.error();
  }
  auto loaded = folder.server();
  if (!loaded && loaded.error().code == ErrorCode::kNotFound && keys.empty()) return ServerKeys{};
  return loaded;
}

}  // namespace foretoken
