// The versions that were published, one file each (versions/<number>.bundle), and the numbers that
// are taken: a number belongs to one bundle for ever. A bundle's file is on disk before anybody is
// sent it, and files are looked at on start, so that a number is never given twice, whatever was
// killed when.
#pragma once

#include <filesystem>
#include <optional>
#include <vector>

#include "foretoken/protocol/bundle.h"
#include "foretoken/protocol/bundle_files.h"

namespace foretoken::trainer {

class VersionStore {
 public:
  // Only the newest files are kept; numbers of deleted ones stay taken, because the newest is
  // always kept.
  static constexpr int kKeep = 64;
  // Errors: kIo; kInvalidInput without a key.
  static Result<VersionStore> open(const std::filesystem::path& folder, const SigningKey& key);

  SpeculatorVersion highest() const { return highest_; }
  void reserve_up_to(SpeculatorVersion version);  // a server has seen numbers up to this one
  SpeculatorVersion next() const { return {highest_.value + 1}; }
  // Signs the bundle, writes bundle.version's file (it must be next()) and returns its bytes.
  Result<std::vector<std::byte>> add(const Bundle& bundle);
  std::optional<std::vector<std::byte>> load(SpeculatorVersion version) const;

 private:
  VersionStore(BundleFiles files, const SigningKey& key) : files_(std::move(files)), key_(key) {}
  BundleFiles files_;
  SigningKey key_;
  SpeculatorVersion highest_;
};

}  // namespace foretoken::trainer
