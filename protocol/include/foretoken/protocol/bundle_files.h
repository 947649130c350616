// A folder of weight bundles, one file a version (00000007.bundle): the server's, of versions that
// may serve again, and the trainer's, of those it published. Files are written atomically. One
// owner; not thread-safe.
#pragma once

#include <filesystem>
#include <span>
#include <vector>

#include "foretoken/protocol/ids.h"
#include "foretoken/protocol/result.h"

namespace foretoken {

class BundleFiles {
 public:
  // Creates the folder; deletes what writers that were killed have left in it. Errors: kIo.
  static Result<BundleFiles> open(const std::filesystem::path& folder);

  std::filesystem::path path_of(SpeculatorVersion version) const;
  Status write(SpeculatorVersion version, std::span<const std::byte> bytes) const;
  // Errors: kNotFound, kIo, kOutOfRange (larger than any bundle).
  Result<std::vector<std::byte>> read(SpeculatorVersion version) const;
  std::vector<SpeculatorVersion> versions() const;  // that have a file, ascending
  void remove(SpeculatorVersion version) const;
  // As NAME.damaged, which nothing reads; logged.
  void set_aside(SpeculatorVersion version, const std::string& problem) const;

 private:
  explicit BundleFiles(std::filesystem::path folder) : folder_(std::move(folder)) {}
  std::filesystem::path folder_;
};

}  // namespace foretoken
