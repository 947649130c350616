// Traces on disk: append-only segment files of the very messages that cross the wire.
// - File: named by 20 digits and ".seg"; a 32-byte header (magic "FTKSEGMT", format, first sequence
//   number, hash), then records.
// - Record: a 32-byte header (magic "FTRC", payload bytes, xxh3 of the payload, xxh3 of the
//   header), then the payload: u32 frames, u64 length of each, the frames.
// Sequence numbers count records from 0, are never reused, and survive restarts and the deletion of
// old files. Crash-safe at every instant: a record is there whole or, as a torn tail, dropped on
// reading; a damaged record in the middle is skipped and counted. A restarted writer opens a new
// file and never touches an old one, but to delete the oldest when the total passes
// `max_total_bytes`, or when a file's last record is older than `max_age_s`. One thread a writer;
// readers may run beside it, in other processes too, and so may forget_records(): it overwrites
// whole records in place, which every reader takes for records that are not there.
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
  // > 0: files whose last record is older are deleted; a file is closed at an eighth of it, so that
  // nothing stays more than that much longer. By the wall clock and the files' times.
  double max_age_s = 0;
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
  // Deletes what is too old; append() does it too. Call it now and then where traffic may cease.
  void expire();
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
  std::filesystem::file_time_type opened_;
  std::uint64_t next_sequence_ = 0, files_version_ = 0;
};

// Overwrites the payload of every record for which `forget` says so with zeros, on disk before this
// returns; sequence numbers stay. Safe beside a writer and readers, and if killed: what was half
// overwritten reads as damaged, and is overwritten by the next call. The number overwritten.
// Errors: kIo, kNotFound.
Result<std::uint64_t> forget_records(const std::filesystem::path& path,
                                     const std::function<bool(std::span<const Frame>)>& forget);

struct SegmentReadStats {
  std::uint64_t records = 0, skipped = 0, torn_files = 0;  // skipped: whole but damaged
  std::uint64_t forgotten = 0;                             // by forget_records()
};

// Calls `visit(sequence, message)` for every readable record from `from_sequence` on, oldest first,
// until it returns false. Memory: one record. `path` is a folder of segments or one segment file.
Result<SegmentReadStats> read_segments(const std::filesystem::path& path,
                                       std::uint64_t from_sequence,
                                       const std::function<bool(std::uint64_t, Message)>& visit);

}  // namespace foretoken
