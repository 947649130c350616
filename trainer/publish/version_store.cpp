#include "trainer/publish/version_store.h"

#include <fmt/format.h>

#include <algorithm>

#include "foretoken/protocol/atomic_file.h"
#include "foretoken/protocol/control.h"

namespace foretoken::trainer {
namespace fs = std::filesystem;
namespace {

std::vector<std::uint64_t> versions_in(const fs::path& folder) {
  std::vector<std::uint64_t> versions;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    const std::string stem = entry.path().stem().string();
    const bool number = !stem.empty() && stem.size() <= 19 &&
                        stem.find_first_not_of("0123456789") == std::string::npos;
    if (entry.path().extension() == ".bundle" && number) versions.push_back(std::stoull(stem));
  }
  std::sort(versions.begin(), versions.end());
  return versions;
}

}  // namespace

Result<VersionStore> VersionStore::open(const fs::path& folder, const SigningKey& key) {
  if (key.empty()) {
    return Error{ErrorCode::kInvalidInput,
                 "signature: the trainer has no key to sign its versions with"};
  }
  std::error_code error;
  fs::create_directories(folder, error);
  if (error)
    return Error{ErrorCode::kIo,
                 fmt::format("{}: cannot create: {}", folder.string(), error.message())};
  remove_leftovers(folder);
  VersionStore store(folder, key);
  const auto versions = versions_in(folder);
  if (!versions.empty()) store.highest_ = {versions.back()};
  return store;
}

void VersionStore::reserve_up_to(SpeculatorVersion version) {
  highest_ = std::max(highest_, version);
}

fs::path VersionStore::path_of(SpeculatorVersion version) const {
  return folder_ / fmt::format("{:08}.bundle", version.value);
}

Result<std::vector<std::byte>> VersionStore::add(const Bundle& bundle) {
  if (bundle.version != next()) {
    return Error{ErrorCode::kInternal,
                 fmt::format("version {} is not the next, {}", bundle.version.value, next().value)};
  }
  std::vector<std::byte> bytes = serialize(bundle, key_);
  if (auto s = write_file_atomically(path_of(bundle.version), bytes); !s) return s.error();
  highest_ = bundle.version;
  delete_old();
  return bytes;
}

std::optional<std::vector<std::byte>> VersionStore::load(SpeculatorVersion version) const {
  auto bytes = read_file(path_of(version), kMaxBundleBytes);
  if (!bytes || !parse_bundle_of_anyone(*bytes)) return std::nullopt;
  return std::move(bytes).value();
}

void VersionStore::delete_old() const {
  const auto versions = versions_in(folder_);
  std::error_code ignored;
  for (std::size_t i = 0; i + kKeep < versions.size(); ++i)
    fs::remove(path_of({versions[i]}), ignored);
}

}  // namespace foretoken::trainer
