#include "trainer/buffer/replay_buffer.h"

#include <spdlog/spdlog.h>

#include <array>

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

const SegmentReader& ReplayBuffer::reader() const {
  if (files_version_ != writer_->files_version()) {
    files_version_ = writer_->files_version();
    reader_.refresh();
  }
  return reader_;
}

}  // namespace foretoken::trainer
