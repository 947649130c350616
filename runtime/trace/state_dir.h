// The server's part of a model's state folder: the last accepted bundle, so that a restarted server
// serves its last version at once, trainer or not. Written atomically; what does not parse is set
// aside by name, never served and never fatal. Used by the link thread (and by start-up before it
// runs).
#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <vector>

#include "foretoken/protocol/bundle.h"
#include "foretoken/protocol/control.h"

namespace foretoken {

class StateDir {
 public:
  // Creates <root>/<fingerprint>/server. Errors: kIo.
  static Result<StateDir> open(const std::filesystem::path& root,
                               const ModelFingerprint& fingerprint);

  const std::filesystem::path& folder() const { return folder_; }
  std::filesystem::path bundle_path() const { return folder_ / "current.bundle"; }

  Status store_bundle(std::span<const std::byte> bytes) const;
  // The bytes of the last accepted bundle; nullopt: there is none. A file that cannot be read or
  // parsed, or is of a signer not trusted (any more), is renamed to current.bundle.damaged and
  // logged.
  std::optional<std::vector<std::byte>> load_bundle(const TrustedSigners& trusted) const;

 private:
  explicit StateDir(std::filesystem::path folder) : folder_(std::move(folder)) {}
  std::filesystem::path folder_;
};

}  // namespace foretoken
