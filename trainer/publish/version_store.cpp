#include "trainer/publish/version_store.h"

#include <fmt/format.h>

#include <algorithm>

namespace foretoken::trainer {

Result<VersionStore> VersionStore::open(const std::filesystem::path& folder,
                                        const SigningKey& key) {
  if (key.empty()) {
    return Error{ErrorCode::kInvalidInput,
                 "signature: the trainer has no key to sign its versions with"};
  }
  auto files = BundleFiles::open(folder);
  if (!files) return files.error();
  VersionStore store(std::move(*files), key);
  const auto versions = store.files_.versions();
  if (!versions.empty()) store.highest_ = versions.back();
  return store;
}

void VersionStore::reserve_up_to(SpeculatorVersion version) {
  highest_ = std::max(highest_, version);
}

Result<std::vector<std::byte>> VersionStore::add(const Bundle& bundle) {
  if (bundle.version != next()) {
    return Error{ErrorCode::kInternal,
                 fmt::format("version {} is not the next, {}", bundle.version.value, next().value)};
  }
  std::vector<std::byte> bytes = serialize(bundle, key_);
  if (auto s = files_.write(bundle.version, bytes); !s) return s.error();
  highest_ = bundle.version;
  const auto versions = files_.versions();
  for (std::size_t i = 0; i + kKeep < versions.size(); ++i) files_.remove(versions[i]);
  return bytes;
}

std::optional<std::vector<std::byte>> VersionStore::load(SpeculatorVersion version) const {
  auto bytes = files_.read(version);
  if (!bytes || !parse_bundle_of_anyone(*bytes)) return std::nullopt;
  return std::move(bytes).value();
}

}  // namespace foretoken::trainer
