#include "foretoken/protocol/state_folder.h"

#include <cstdlib>

namespace foretoken {

std::filesystem::path default_state_root() {
  const auto variable = [](const char* name) -> std::filesystem::path {
    const char* value = std::getenv(name);
    return value ? value : "";
  };
  if (const auto root = variable("FORETOKEN_STATE_DIR"); !root.empty()) return root;
  if (const auto state = variable("XDG_STATE_HOME"); !state.empty()) return state / "foretoken";
  if (const auto home = variable("HOME"); !home.empty())
    return home / ".local" / "state" / "foretoken";
  return std::filesystem::temp_directory_path() / "foretoken";
}

std::filesystem::path model_state_folder(const std::filesystem::path& root,
                                         const ModelFingerprint& fingerprint) {
  return root / to_hex(fingerprint).substr(0, 16);
}

}  // namespace foretoken
