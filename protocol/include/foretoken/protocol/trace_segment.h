// Traces on disk: append-only segment files of the very messages that cross the wire.
// - File: named by 20 digits and ".seg"; a 32-byte header (magic "FTKSEGMT", format, first sequence
//   number, hash), then records.
// - Record: a 32-byte header (magic "FTRC", payload bytes, xxh3 of the payload, xxh3 of the
//   header), then the payload: u32 frames, u64 length of each, the frames.
// Sequence numbers count records from 0, are never reused, and survive restarts and the deletion of
// old files. Crash-safe at every instant: a record is there whole or, as a torn tail, dropped on
// reading; a damaged record in the middle is skipped and counted. A restarted writer opens a new
// file and never touches an old one, but to delete the oldest when the total passes
// `max_total_bytes`. One thread a writer; readers may run beside it, in other processes too.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "foretoken/protocol/frame.h"

namespace foretoken {

struct SegmentOptions {
  std::size_t max_total_bytes = std::size_t{1} << 30;
  std::size_t segment_bytes = std::size_t{32} << 20;  // a file is closed when it passes this
  bool sync = false;  // fdatasync after every record: survives a power cut, not only a kill
};

class TraceSegmentWriter {
 public:
  // Creates the folder. Errors: kIo.
  static Result<std::unique_ptr<TraceSegmentWriter>> open(const std::filesystem::path& folder,
                                                          const SegmentOptions& options);
  ~TraceSegmentWriter();
  TraceSegmentWriter(const TraceSegmentWriter&) = delete;
  TraceSegmentWriter& operator=(const TraceSegmentWriter&) = delete;

  // The record's sequence number. Errors: kIo (a full disk: the half-written record is cut off
  // again), kOutOfRange (one record larger than max_total_bytes).
  Result<std::uint64_t> append(std::span<const Frame> message);
  std::uint64_t next_sequence() const { return next_sequence_; }
  std::size_t total_bytes() const;
  std::uint64_t files_version() const { return files_version_; }  // rises when a file comes or goes

 private:
  struct File {
    std::filesystem::path path;
    std::size_t bytes;
  };
  TraceSegmentWriter(std::filesystem::path folder, const SegmentOptions& options);
  Status start_file();
  void delete_oldest(std::size_t needed_bytes);

  std::filesystem::path folder_;
  SegmentOptions options_;
  std::vector<File> files_;  // oldest first; the last is open if descriptor_ >= 0
  int descriptor_ = -1;
  std::uint64_t next_sequence_ = 0, files_version_ = 0;
};

struct SegmentReadStats {
  std::uint64_t records = 0, skipped = 0, torn_files = 0;  // skipped: whole but damaged
};

// Calls `visit(sequence, message)` for every readable record from `from_sequence` on, oldest first,
// until it returns false. Memory: one record. `path` is a folder of segments or one segment file.
Result<SegmentReadStats> read_segments(const std::filesystem::path& path,
                                       std::uint64_t from_sequence,
                                       const std::function<bool(std::uint64_t, Message)>& visit);

}  // namespace foretoken
