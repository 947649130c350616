#include "trainer/buffer/segment_reader.h"

#include <charconv>

#include "foretoken/protocol/trace_segment.h"

namespace foretoken::trainer {

void SegmentReader::refresh() {
  files_.clear();
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder_, ignored)) {
    if (entry.path().extension() != ".seg") continue;
    std::uint64_t first = 0;
    const std::string stem = entry.path().stem().string();
    const auto parsed = std::from_chars(stem.data(), stem.data() + stem.size(), first);
    if (parsed.ec == std::errc{}) files_.emplace(first, entry.path());
  }
}

std::optional<SegmentReader::Record> SegmentReader::first_from(std::uint64_t from) const {
  std::optional<Record> found;
  auto file = files_.upper_bound(from);
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

std::optional<RequestTrace> SegmentReader::trace(std::uint64_t sequence) const {
  auto file = files_.upper_bound(sequence);
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

std::uint64_t SegmentReader::oldest_sequence() const {
  return files_.empty() ? 0 : files_.begin()->first;
}

}  // namespace foretoken::trainer
