// A folder of trace segments, read by record number: what the trainer goes over again and again.
// Another process, or this one, may append to it and delete old files meanwhile.
#pragma once

#include <filesystem>
#include <map>
#include <optional>

#include "foretoken/protocol/trace.h"
#include "trainer/learner/learner.h"

namespace foretoken::trainer {

class SegmentReader final : public TraceSource {
 public:
  explicit SegmentReader(std::filesystem::path folder) : folder_(std::move(folder)) { refresh(); }
  void refresh();  // a file came or went

  struct Record {
    std::uint64_t sequence;
    RequestTrace trace;
  };
  // The first readable record from `from` on; nullopt: there is none.
  std::optional<Record> first_from(std::uint64_t from) const;
  // Reads the headers of one file's records up to it, then the record. Memory: one record.
  std::optional<RequestTrace> trace(std::uint64_t sequence) const override;
  std::uint64_t oldest_sequence() const override;  // 0 in an empty folder

 private:
  std::filesystem::path folder_;
  std::map<std::uint64_t, std::filesystem::path> files_;  // by first number
};

}  // namespace foretoken::trainer
