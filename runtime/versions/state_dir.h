// The server's part of a model's state folder: the bundles of versions that may serve again, and
// the lineage that says which (lineage.h), so that a restarted server serves its last proven
// speculator at once, trainer or not. Files are written atomically; what does not parse is set
// aside by name, never served and never fatal. Link thread (and start-up before it runs), under
// VersionKeeper's lock.
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
  // Creates <root>/<fingerprint>/server/versions. Errors: kIo.
  static Result<StateDir> open(const std::filesystem::path& root,
                               const ModelFingerprint& fingerprint);

  const std::filesystem::path& folder() const { return folder_; }
  std::filesystem::path lineage_path() const { return folder_ / "lineage.jsonl"; }
  std::filesystem::path traffic_folder() const { return folder_ / "traffic"; }
  std::filesystem::path bundle_path(SpeculatorVersion version) const;

  Status store_bundle(SpeculatorVersion version, std::span<const std::byte> bytes) const;
  // nullopt: there is no such file. One that cannot be read is renamed to NAME.damaged and logged.
  std::optional<std::vector<std::byte>> load_bundle(SpeculatorVersion version) const;
  void set_aside(SpeculatorVersion version, const std::string& problem) const;
  // Deletes the bundles of all versions but these.
  void keep_only(std::span<const SpeculatorVersion> versions) const;

 private:
  explicit StateDir(std::filesystem::path folder) : folder_(std::move(folder)) {}
  std::filesystem::path folder_;
};

}  // namespace foretoken
