#include "runtime/versions/state_dir.h"

#include <algorithm>

#include "foretoken/protocol/state_folder.h"

namespace foretoken {

Result<StateDir> StateDir::open(const std::filesystem::path& root,
                                const ModelFingerprint& fingerprint) {
  const auto folder = model_state_folder(root, fingerprint) / "server";
  auto bundles = BundleFiles::open(folder / "versions");
  if (!bundles) return bundles.error();
  return StateDir(folder, std::move(*bundles));
}

std::optional<std::vector<std::byte>> StateDir::load_bundle(SpeculatorVersion version) const {
  auto bytes = bundles_.read(version);
  if (bytes) return std::move(bytes).value();
  if (bytes.error().code != ErrorCode::kNotFound)
    bundles_.set_aside(version, bytes.error().message);
  return std::nullopt;
}

void StateDir::keep_only(std::span<const SpeculatorVersion> versions) const {
  for (const SpeculatorVersion version : bundles_.versions())
    if (std::ranges::find(versions, version) == versions.end()) bundles_.remove(version);
}

}  // namespace foretoken
