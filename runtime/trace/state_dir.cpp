#include "runtime/trace/state_dir.h"

#include <spdlog/spdlog.h>

#include "foretoken/protocol/atomic_file.h"
#include "foretoken/protocol/state_folder.h"

namespace foretoken {

Result<StateDir> StateDir::open(const std::filesystem::path& root,
                                const ModelFingerprint& fingerprint) {
  const auto folder = model_state_folder(root, fingerprint) / "server";
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error)
    return Error{ErrorCode::kIo,
                 fmt::format("{}: cannot create: {}", folder.string(), error.message())};
  return StateDir(folder);
}

Status StateDir::store_bundle(std::span<const std::byte> bytes) const {
  return write_file_atomically(bundle_path(), bytes);
}

std::optional<std::vector<std::byte>> StateDir::load_bundle(const TrustedSigners& trusted) const {
  auto bytes = read_file(bundle_path(), kMaxBundleBytes);
  if (!bytes && bytes.error().code == ErrorCode::kNotFound) return std::nullopt;
  std::string problem;
  if (!bytes) {
    problem = bytes.error().message;
  } else if (auto bundle = parse_bundle(*bytes, trusted); !bundle) {
    problem = bundle.error().message;
  } else {
    return std::move(bytes).value();
  }
  const auto aside = bundle_path().string() + ".damaged";
  spdlog::warn("{}: {}; set aside as {}", bundle_path().string(), problem, aside);
  std::error_code ignored;
  std::filesystem::rename(bundle_path(), aside, ignored);
  return std::nullopt;
}

}  // namespace foretoken
