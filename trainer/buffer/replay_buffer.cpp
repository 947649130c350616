#include "trainer/buffer/replay_buffer.h"

#include <spdlog/spdlog.h>

#include <array>
#include <charconv>

namespace foretoken::trainer {

Result<ReplayBuffer> ReplayBuffer::open(const std::filesystem::path& folder, std::size_t max_bytes,
                                        double max_age_s) {
  SegmentOptions options;
  options.max_total_bytes = max_bytes;
  options.max_age_s = max_age_s;
  options.segment_bytes =
      std::min(options.segment_bytes, std::max<std::size_t>(max_bytes / 8, 4096));
  auto writer = TraceSegmentWriter::open(folder, options);
  if (!writer) return writer.error();
  ReplayBuffer buffer(folder, std::move(writer).value());
  auto stats = read_segments(folder, 0, [&](std::uint64_t, const Message& message) {
    if (auto trace = parse_trace(message)) {
      buffer.remember(key_of(trace->server_run, trace->request.value));
      ++buffer.requests_;
    }
    return true;
  });
  if (stats && (stats->skipped || stats->torn_files)) {
    spdlog::warn("{}: {} damaged records skipped, {} files with a torn tail", folder.string(),
                 stats->skipped, stats->torn_files);
  }
  return buffer;
}

std::uint64_t ReplayBuffer::key_of(std::uint64_t server_run, std::uint64_t request) {
  const std::array<std::uint64_t, 2> pair{server_run, request};
  return content_hash(std::as_bytes(std::span(pair)));
}

void ReplayBuffer::remember(std::uint64_t key) {
  if (!known_.insert(key).second) return;
  order_.push_back(key);
  if (order_.size() > kRemembered) {
    known_.erase(order_.front());
    order_.pop_front();
  }
}

bool ReplayBuffer::contains(std::uint64_t server_run, std::uint64_t request) const {
  return known_.contains(key_of(server_run, request));
}

Result<std::uint64_t> ReplayBuffer::append(const Message& message, std::uint64_t server_run,
                                           std::uint64_t request) {
  auto sequence = writer_->append(message);
  if (sequence) {
    remember(key_of(server_run, request));
    ++requests_;
  }
  return sequence;
}

const std::map<std::uint64_t, std::filesystem::path>& ReplayBuffer::files() const {
  if (files_version_ == writer_->files_version()) return files_;
  files_version_ = writer_->files_version();
  files_.clear();
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder_, ignored)) {
    if (entry.path().extension() != ".seg") continue;
    std::uint64_t first = 0;
    const std::string stem = entry.path().stem().string();
    const auto parsed = std::from_chars(stem.data(), stem.data() + stem.size(), first);
    if (parsed.ec == std::errc{}) files_.emplace(first, entry.path());
  }
  return files_;
}

std::optional<ReplayBuffer::Record> ReplayBuffer::first_from(std::uint64_t from) const {
  std::optional<Record> found;
  auto file = files().upper_bound(from);
  if (file != files_.begin()) --file;
  for (; file != files_.end() && !found; ++file) {
    (void)read_segments(file->second, from, [&](std::uint64_t sequence, const Message& message) {
      auto trace = parse_trace(message);
      if (trace) found = Record{sequence, std::move(trace).value()};
      return !found;
    });
  }
  return found;
}

std::optional<RequestTrace> ReplayBuffer::trace(std::uint64_t sequence) const {
  auto file = files().upper_bound(sequence);
  if (file == files_.begin()) return std::nullopt;
  --file;
  std::optional<RequestTrace> found;
  (void)read_segments(file->second, sequence, [&](std::uint64_t at, const Message& message) {
    if (at == sequence) {
      if (auto trace = parse_trace(message)) found = std::move(trace).value();
    }
    return false;
  });
  return found;
}

std::uint64_t ReplayBuffer::oldest_sequence() const {
  return files().empty() ? next_sequence() : files_.begin()->first;
}

}  // namespace foretoken::trainer
