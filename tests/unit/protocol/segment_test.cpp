// Trace segments: append-only, bounded, and readable after a kill at any byte.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "foretoken/protocol/atomic_file.h"
#include "foretoken/protocol/trace.h"
#include "foretoken/protocol/trace_segment.h"
#include "tests/unit/protocol/sample_trace.h"

namespace foretoken {
namespace {
namespace fs = std::filesystem;

class Segments : public ::testing::Test {
 protected:
  using Found = std::pair<std::uint64_t, std::uint64_t>;  // sequence, request

  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("foretoken-segments-" + std::to_string(::getpid()));
    fs::remove_all(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::unique_ptr<TraceSegmentWriter> open(SegmentOptions options = {}) {
    auto writer = TraceSegmentWriter::open(folder_, options);
    EXPECT_TRUE(writer) << writer.error().message;
    return std::move(writer).value();
  }
  std::vector<Found> read(std::uint64_t from = 0, SegmentReadStats* stats = nullptr) {
    std::vector<Found> found;
    const auto result =
        read_segments(folder_, from, [&](std::uint64_t sequence, const Message& message) {
          const auto trace = parse_trace(message);
          EXPECT_TRUE(trace);
          if (trace) found.emplace_back(sequence, trace->request.value);
          return true;
        });
    EXPECT_TRUE(result);
    if (stats) *stats = *result;
    return found;
  }
  std::vector<fs::path> files() {
    std::vector<fs::path> found;
    for (const auto& entry : fs::directory_iterator(folder_)) found.push_back(entry.path());
    std::sort(found.begin(), found.end());
    return found;
  }
  fs::path folder_;
};

TEST_F(Segments, NumbersGoOnAcrossRestarts) {
  for (std::uint64_t start = 0; start < 3; ++start) {
    auto writer = open();
    for (std::uint64_t i = 0; i < 4; ++i) {
      const std::uint64_t n = 4 * start + i;
      EXPECT_EQ(*writer->append(serialize(sample_trace(100 + n))), n);
    }
  }
  const auto all = read();
  ASSERT_EQ(all.size(), 12u);
  for (std::uint64_t i = 0; i < 12; ++i) EXPECT_EQ(all[i], Found(i, 100 + i));
  const auto tail = read(9);
  ASSERT_EQ(tail.size(), 3u);
  EXPECT_EQ(tail[0], Found(9, 109));
}

TEST_F(Segments, ATornTailIsDroppedAtEveryLength) {
  {
    auto writer = open();
    for (std::uint64_t i = 0; i < 3; ++i) {
      ASSERT_TRUE(writer->append(serialize(sample_trace(1 + i, 1))));
    }
  }
  const fs::path file = files()[0];
  const auto whole = *read_file(file, 1 << 20);
  const std::size_t record = (whole.size() - 32) / 3;
  for (std::size_t size = 0; size < whole.size(); ++size) {
    std::ofstream(file, std::ios::binary | std::ios::trunc)
        .write(reinterpret_cast<const char*>(whole.data()), std::streamsize(size));
    const std::size_t records = size < 32 ? 0 : (size - 32) / record;
    ASSERT_EQ(read().size(), records) << size;
    if (size % 97 != 0) continue;
    // A writer that comes back after that goes on behind it.
    auto writer = open();
    const auto sequence = writer->append(serialize(sample_trace(77)));
    ASSERT_TRUE(sequence) << size << ": " << sequence.error().message;
    ASSERT_GE(*sequence, records);
    writer.reset();
    const auto all = read();
    ASSERT_EQ(all.size(), records + 1) << size;
    ASSERT_EQ(all.back().second, 77u);
    fs::remove(files().back());
  }
}

TEST_F(Segments, ADamagedRecordIsSkippedAndCounted) {
  {
    auto writer = open();
    for (std::uint64_t i = 0; i < 5; ++i) ASSERT_TRUE(writer->append(serialize(sample_trace(i))));
  }
  auto bytes = *read_file(files()[0], 1 << 20);
  const std::size_t record = (bytes.size() - 32) / 5;
  bytes[32 + 2 * record + record / 2] ^= std::byte(4);
  ASSERT_TRUE(write_file_atomically(files()[0], bytes));
  SegmentReadStats stats;
  const auto all = read(0, &stats);
  ASSERT_EQ(all.size(), 4u);
  EXPECT_EQ(all[2], Found(3, 3));
  EXPECT_EQ(stats.skipped, 1u);
}

TEST_F(Segments, TheTotalStaysBoundedAndTheOldestGoFirst) {
  SegmentOptions options;
  const std::size_t one = total_bytes(serialize(sample_trace())) + 200;
  options.max_total_bytes = 20 * one;
  options.segment_bytes = 3 * one;
  auto writer = open(options);
  for (std::uint64_t i = 0; i < 200; ++i) {
    ASSERT_TRUE(writer->append(serialize(sample_trace(i))));
    std::size_t on_disk = 0;
    for (const fs::path& file : files()) on_disk += fs::file_size(file);
    ASSERT_LE(on_disk, options.max_total_bytes);
    ASSERT_EQ(on_disk, writer->total_bytes());
  }
  const auto left = read();
  EXPECT_GE(left.size(), 10u);
  EXPECT_EQ(left.back(), Found(199, 199));
  for (std::size_t i = 1; i < left.size(); ++i) EXPECT_EQ(left[i].first, left[i - 1].first + 1);
  EXPECT_EQ(writer->append(serialize(sample_trace(1, 5000))).error().code, ErrorCode::kOutOfRange);
}

TEST_F(Segments, AFolderThatCannotBeIsNamed) {
  const auto writer = TraceSegmentWriter::open("/proc/nope/traces", {});
  ASSERT_FALSE(writer);
  EXPECT_NE(writer.error().message.find("/proc/nope/traces"), std::string::npos);
  const auto missing = read_segments(folder_ / "missing", 0, [](auto, auto) { return true; });
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
}

// Whatever is running: the records are gone from the disk, the others and the numbers stay.
TEST_F(Segments, ForgottenRecordsAreGoneAndNumbersStay) {
  SegmentOptions options;
  options.segment_bytes = 4096;  // several files
  auto writer = open(options);
  const auto record = [](std::uint64_t n) {
    RequestTrace trace = sample_trace(n);
    trace.key_id = n % 3 == 0 ? "key-00000001" : "key-00000002";
    trace.domain = n % 3 == 0 ? "a secret label" : "x";
    return serialize(trace);
  };
  for (std::uint64_t n = 0; n < 12; ++n) ASSERT_TRUE(writer->append(record(n)));
  ASSERT_GT(files().size(), 1u);
  const auto of_key = [](std::span<const Frame> message) {
    return parse_trace(message)->key_id == "key-00000001";
  };
  const auto forgotten = forget_records(folder_, of_key);  // beside the writer
  ASSERT_TRUE(forgotten) << forgotten.error().message;
  EXPECT_EQ(*forgotten, 4u);
  EXPECT_EQ(*writer->append(record(13)), 12u);
  SegmentReadStats stats;
  const auto found = read(0, &stats);
  EXPECT_EQ(found.size(), 9u);
  for (const auto& [sequence, request] : found) EXPECT_NE(request % 3, 0u);
  EXPECT_EQ(found.back().first, 12u);
  EXPECT_EQ(stats.forgotten, 4u);
  EXPECT_EQ(stats.skipped, 0u);
  for (const fs::path& path : files()) {
    const auto bytes = *read_file(path, 1 << 24);
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    EXPECT_EQ(text.find("a secret label"), std::string_view::npos) << path;
  }
  EXPECT_EQ(*forget_records(folder_, of_key), 0u);
  // A record that a kill left half overwritten is damaged, so it goes with the next call.
  auto bytes = *read_file(files().back(), 1 << 24);
  bytes[bytes.size() - 5] ^= std::byte(1);
  ASSERT_TRUE(write_file_atomically(files().back(), bytes));
  EXPECT_EQ(*forget_records(folder_, of_key), 1u);
  EXPECT_EQ(read().size(), 8u);
  EXPECT_FALSE(forget_records(folder_ / "nothing", of_key));
}

TEST_F(Segments, WhatIsTooOldIsDeletedAndNumbersGoOn) {
  SegmentOptions options;
  options.max_age_s = 1000;
  const auto age = [&](double seconds) {
    for (const fs::path& path : files())
      fs::last_write_time(path, fs::file_time_type::clock::now() -
                                    std::chrono::duration_cast<fs::file_time_type::duration>(
                                        std::chrono::duration<double>(seconds)));
  };
  {
    auto writer = open(options);
    for (std::uint64_t n = 0; n < 3; ++n) ASSERT_TRUE(writer->append(serialize(sample_trace(n))));
  }
  age(500);
  {
    auto writer = open(options);
    EXPECT_EQ(*writer->append(serialize(sample_trace(3))), 3u);
    EXPECT_EQ(read().size(), 4u);
  }
  age(1500);
  {
    auto writer = open(options);
    writer->expire();
    EXPECT_TRUE(read().empty());
  }
  auto writer = open(options);
  EXPECT_GE(*writer->append(serialize(sample_trace(4))), 4u);
  EXPECT_EQ(read().size(), 1u);
}

}  // namespace
}  // namespace foretoken
