#include "foretoken/protocol/bundle_files.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "foretoken/protocol/atomic_file.h"
#include "foretoken/protocol/control.h"

namespace foretoken {
namespace fs = std::filesystem;

Result<BundleFiles> BundleFiles::open(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error)
    return Error{ErrorCode::kIo,
                 fmt::format("{}: cannot create: {}", folder.string(), error.message())};
  remove_leftovers(folder);
  return BundleFiles(folder);
}

fs::path BundleFiles::path_of(SpeculatorVersion version) const {
  return folder_ / fmt::format("{:08}.bundle", version.value);
}

Status BundleFiles::write(SpeculatorVersion version, std::span<const std::byte> bytes) const {
  return write_file_atomically(path_of(version), bytes);
}

Result<std::vector<std::byte>> BundleFiles::read(SpeculatorVersion version) const {
  return read_file(path_of(version), kMaxBundleBytes);
}

std::vector<SpeculatorVersion> BundleFiles::versions() const {
  std::vector<SpeculatorVersion> versions;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder_, ignored)) {
    const std::string stem = entry.path().stem().string();
    const bool number = !stem.empty() && stem.size() <= 19 &&
                        stem.find_first_not_of("0123456789") == std::string::npos;
    if (entry.path().extension() == ".bundle" && number) versions.push_back({std::stoull(stem)});
  }
  std::ranges::sort(versions);
  return versions;
}

void BundleFiles::remove(SpeculatorVersion version) const {
  std::error_code ignored;
  fs::remove(path_of(version), ignored);
}

void BundleFiles::set_aside(SpeculatorVersion version, const std::string& problem) const {
  const fs::path path = path_of(version);
  const std::string aside = path.string() + ".damaged";
  spdlog::warn("{}: {}; set aside as {}", path.string(), problem, aside);
  std::error_code ignored;
  fs::rename(path, aside, ignored);
}

}  // namespace foretoken
