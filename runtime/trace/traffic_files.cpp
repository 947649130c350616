#include "runtime/trace/traffic_files.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>

#include "foretoken/protocol/atomic_file.h"

namespace foretoken {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kShared = "shared";
// The largest store a server makes is 32 MiB of entries, 40 bytes on disk for 32 in memory.
constexpr std::size_t kMaxBytes = std::size_t{64} << 20;

bool is_label(std::string_view name) {
  return !name.empty() && name.size() <= 64 && std::ranges::all_of(name, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-';
  });
}

}  // namespace

fs::path traffic_file(const fs::path& folder, const std::string& key_id) {
  return folder / fmt::format("{}.store", key_id.empty() ? kShared : std::string_view(key_id));
}

void save_traffic_files(const fs::path& folder, const std::vector<SavedTraffic>& saved) {
  std::error_code error;
  fs::create_directories(folder, error);
  fs::permissions(folder, fs::perms::owner_all, error);
  for (const SavedTraffic& s : saved) {
    if (!s.key_id.empty() && !is_label(s.key_id)) continue;
    if (auto status = write_file_atomically(traffic_file(folder, s.key_id), s.bytes); !status)
      spdlog::warn("a traffic store is not kept: {}", status.error().message);
  }
}

std::vector<SavedTraffic> load_traffic_files(const fs::path& folder, std::size_t max_files,
                                             double max_age_s) {
  std::vector<std::pair<fs::file_time_type, fs::path>> files;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    if (entry.path().extension() != ".store" || !is_label(entry.path().stem().string())) continue;
    const auto written = entry.last_write_time(ignored);
    const double age_s =
        std::chrono::duration<double>(fs::file_time_type::clock::now() - written).count();
    if (max_age_s > 0 && age_s > max_age_s)
      fs::remove(entry.path(), ignored);
    else
      files.emplace_back(written, entry.path());
  }
  std::ranges::sort(files, std::greater<>());
  if (files.size() > max_files) files.resize(max_files);
  std::vector<SavedTraffic> saved;
  for (const auto& [time, path] : files) {
    auto bytes = read_file(path, kMaxBytes);
    if (!bytes) {
      spdlog::warn("{}", bytes.error().message);
      continue;
    }
    const std::string name = path.stem().string();
    saved.push_back({name == kShared ? std::string() : name, std::move(*bytes)});
  }
  return saved;
}

Result<fs::path> leave_forget_note(const fs::path& server_folder, const std::string& key_id) {
  const fs::path folder = server_folder / "forget";
  std::error_code error;
  fs::create_directories(folder, error);
  const fs::path note = folder / (key_id.empty() ? std::string(kShared) : key_id);
  if (auto status = write_file_atomically(note, {}); !status) return status.error();
  return note;
}

void read_forget_notes(const fs::path& server_folder,
                       const std::function<void(const std::string& key_id)>& forget) {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(server_folder / "forget", ignored)) {
    const std::string name = entry.path().filename().string();
    if (!is_label(name)) continue;  // a file that is still being written
    const std::string key_id = name == kShared ? std::string() : name;
    forget(key_id);
    fs::remove(traffic_file(server_folder / "traffic", key_id), ignored);
    fs::remove(entry.path(), ignored);
    spdlog::info("forgot the traffic of {}", name);
  }
}

}  // namespace foretoken
