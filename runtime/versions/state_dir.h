// The server's part of a model's state folder: the bundles of versions that may serve again, and
// the lineage that says which (lineage.h), so that a restarted server serves its last proven
// speculator at once, trainer or not. What does not parse is set aside by name, never served and
// never fatal. Link thread (and start-up before it runs), under VersionKeeper's lock.
#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <vector>

#include "foretoken/protocol/bundle_files.h"
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

  const BundleFiles& bundles() const { return bundles_; }
  // nullopt: there is no such file. One that cannot be read is set aside.
  std::optional<std::vector<std::byte>> load_bundle(SpeculatorVersion version) const;
  // Deletes the bundles of all versions but these.
  void keep_only(std::span<const SpeculatorVersion> versions) const;

 private:
  StateDir(std::filesystem::path folder, BundleFiles bundles)
      : folder_(std::move(folder)), bundles_(std::move(bundles)) {}
  std::filesystem::path folder_;
  BundleFiles bundles_;
};

}  // namespace foretoken
