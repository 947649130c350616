#include "runtime/versions/state_dir.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "foretoken/protocol/atomic_file.h"
#include "foretoken/protocol/state_folder.h"

namespace foretoken {

Result<StateDir> StateDir::open(const std::filesystem::path& root,
                                const ModelFingerprint& fingerprint) {
  const auto folder = model_state_folder(root, fingerprint) / "server";
  std::error_code error;
  std::filesystem::create_directories(folder / "versions", error);
  if (error)
    return Error{ErrorCode::kIo,
                 fmt::format("{}: cannot create: {}", folder.string(), error.message())};
  remove_leftovers(folder / "versions");
  return StateDir(folder);
}

std::filesystem::path StateDir::bundle_path(SpeculatorVersion version) const {
  return folder_ / "versions" / fmt::format("{:08}.bundle", version.value);
}

Status StateDir::store_bundle(SpeculatorVersion version, std::span<const std::byte> bytes) const {
  return write_file_atomically(bundle_path(version), bytes);
}

std::optional<std::vector<std::byte>> StateDir::load_bundle(SpeculatorVersion version) const {
  auto bytes = read_file(bundle_path(version), kMaxBundleBytes);
  if (bytes) return std::move(bytes).value();
  if (bytes.error().code != ErrorCode::kNotFound) set_aside(version, bytes.error().message);
  return std::nullopt;
}

void StateDir::set_aside(SpeculatorVersion version, const std::string& problem) const {
  const auto path = bundle_path(version);
  const auto aside = path.string() + ".damaged";
  spdlog::warn("{}: {}; set aside as {}", path.string(), problem, aside);
  std::error_code ignored;
  std::filesystem::rename(path, aside, ignored);
}

void StateDir::keep_only(std::span<const SpeculatorVersion> versions) const {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder_ / "versions", ignored)) {
    if (entry.path().extension() != ".bundle") continue;
    const bool kept = std::ranges::any_of(
        versions, [&](SpeculatorVersion v) { return bundle_path(v) == entry.path(); });
    if (!kept) std::filesystem::remove(entry.path(), ignored);
  }
}

}  // namespace foretoken
