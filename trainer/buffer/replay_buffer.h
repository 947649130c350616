// The trainer's memory of traffic: a bounded folder of trace segments (protocol/trace_segment.h),
// the very messages that arrived. It survives SIGKILL at any instant: a record is there whole or
// not at all. Sequence numbers order the records for ever and are what a checkpoint remembers.
#pragma once

#include <algorithm>
#include <deque>
#include <filesystem>
#include <optional>
#include <unordered_set>

#include "foretoken/protocol/trace.h"
#include "foretoken/protocol/trace_segment.h"
#include "trainer/buffer/segment_reader.h"

namespace foretoken::trainer {

class ReplayBuffer final : public TraceSource {
 public:
  // Reads what is there once, to know which requests are in it.
  // max_age_s > 0: what is older is deleted.
  static Result<ReplayBuffer> open(const std::filesystem::path& folder, std::size_t max_bytes,
                                   double max_age_s = 0);
  void expire() { writer_->expire(); }

  // True of a request among the last kRemembered: a message that came twice is not learned from
  // twice.
  bool contains(std::uint64_t server_run, std::uint64_t request) const;
  // Errors: kIo (a full disk), kOutOfRange.
  Result<std::uint64_t> append(const Message& message, std::uint64_t server_run,
                               std::uint64_t request);

  std::optional<SegmentReader::Record> first_from(std::uint64_t from) const {
    return reader().first_from(from);
  }
  std::optional<RequestTrace> trace(std::uint64_t sequence) const override {
    return reader().trace(sequence);
  }
  std::uint64_t oldest_sequence() const override {
    return std::min(reader().oldest_sequence(), next_sequence());
  }

  std::uint64_t next_sequence() const { return writer_->next_sequence(); }
  std::size_t bytes() const { return writer_->total_bytes(); }
  std::int64_t requests() const { return requests_; }

 private:
  static constexpr std::size_t kRemembered = 65536;
  ReplayBuffer(std::filesystem::path folder, std::unique_ptr<TraceSegmentWriter> writer)
      : folder_(std::move(folder)), writer_(std::move(writer)), reader_(folder_) {}
  void remember(std::uint64_t key);
  const SegmentReader& reader() const;  // up to date with the writer's files
  static std::uint64_t key_of(std::uint64_t server_run, std::uint64_t request);

  std::filesystem::path folder_;
  std::unique_ptr<TraceSegmentWriter> writer_;
  std::unordered_set<std::uint64_t> known_;
  std::deque<std::uint64_t> order_;
  mutable SegmentReader reader_;
  mutable std::uint64_t files_version_ = ~std::uint64_t{0};
  std::int64_t requests_ =
      0;  // appended or found at start; deletions of old segments are not subtracted
};

}  // namespace foretoken::trainer
