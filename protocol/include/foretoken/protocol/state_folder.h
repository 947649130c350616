// Where a process keeps what must survive it: one folder a model fingerprint under one root.
#pragma once

#include <filesystem>

#include "foretoken/protocol/control.h"

namespace foretoken {

// $FORETOKEN_STATE_DIR, else $XDG_STATE_HOME/foretoken, else ~/.local/state/foretoken.
std::filesystem::path default_state_root();
// <root>/<first 16 hex digits>: enough to tell models apart, short enough to read.
std::filesystem::path model_state_folder(const std::filesystem::path& root,
                                         const ModelFingerprint& fingerprint);

}  // namespace foretoken
