#include "foretoken/protocol/trace_segment.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>

#include "protocol/bytes.h"
#include "protocol/posix_file.h"

namespace foretoken {
namespace fs = std::filesystem;
namespace {

constexpr char kFileMagic[8] = {'F', 'T', 'K', 'S', 'E', 'G', 'M', 'T'};
constexpr char kRecordMagic[4] = {'F', 'T', 'R', 'C'};
constexpr std::uint32_t kFormatVersion = 1;
constexpr std::size_t kHeaderBytes = 32;
constexpr std::size_t kMaxPayloadBytes = kMaxMessageBytes + 16 * (kMaxFrames + 1);

std::vector<std::byte> file_header(std::uint64_t first_sequence) {
  std::vector<std::byte> bytes(kHeaderBytes);
  std::memcpy(bytes.data(), kFileMagic, sizeof kFileMagic);
  store<std::uint32_t>(bytes.data() + 8, kFormatVersion);
  store<std::uint64_t>(bytes.data() + 16, first_sequence);
  store<std::uint64_t>(bytes.data() + 24, content_hash({bytes.data(), 24}));
  return bytes;
}

std::vector<std::byte> record(std::span<const Frame> message) {
  const std::size_t lengths_bytes = 4 + 8 * message.size();
  const std::size_t payload_bytes = lengths_bytes + total_bytes(message);
  std::vector<std::byte> bytes(kHeaderBytes + payload_bytes);
  std::byte* at = bytes.data() + kHeaderBytes;
  store<std::uint32_t>(at, static_cast<std::uint32_t>(message.size()));
  at += 4;
  for (const Frame& frame : message) {
    store<std::uint64_t>(at, frame.size());
    at += 8;
  }
  for (const Frame& frame : message) {
    if (!frame.empty()) std::memcpy(at, frame.data(), frame.size());
    at += frame.size();
  }
  std::memcpy(bytes.data(), kRecordMagic, sizeof kRecordMagic);
  store<std::uint32_t>(bytes.data() + 4, 0);
  store<std::uint64_t>(bytes.data() + 8, payload_bytes);
  store<std::uint64_t>(bytes.data() + 16,
                       content_hash({bytes.data() + kHeaderBytes, payload_bytes}));
  store<std::uint64_t>(bytes.data() + 24, content_hash({bytes.data(), 24}));
  return bytes;
}

// A record that was forgotten: flagged, its payload zeros. Its size is what it was.
constexpr std::uint32_t kForgotten = 1;

void flag_forgotten(std::byte* header, std::uint64_t payload_hash) {
  store<std::uint32_t>(header + 4, kForgotten);
  store<std::uint64_t>(header + 16, payload_hash);
  store<std::uint64_t>(header + 24, content_hash({header, 24}));
}

std::optional<Message> read_payload(std::span<const std::byte> payload) {
  if (payload.size() < 4) return std::nullopt;
  const auto n_frames = load<std::uint32_t>(payload.data());
  if (n_frames > kMaxFrames + 1 || payload.size() < 4 + 8 * std::size_t(n_frames))
    return std::nullopt;
  Message message;
  std::size_t at = 4 + 8 * std::size_t(n_frames);
  for (std::uint32_t i = 0; i < n_frames; ++i) {
    const auto length = load<std::uint64_t>(payload.data() + 4 + 8 * std::size_t(i));
    if (length > payload.size() - at) return std::nullopt;
    const auto frame = payload.subspan(at, length);
    message.emplace_back(frame.begin(), frame.end());
    at += length;
  }
  if (at != payload.size()) return std::nullopt;
  return message;
}

// Segment files of a folder, oldest first: names are zero-padded first sequence numbers.
std::vector<fs::path> segment_files(const fs::path& path) {
  std::error_code ignored;
  if (!fs::is_directory(path, ignored)) return {path};
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(path, ignored)) {
    if (entry.path().extension() == ".seg") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

// Visits one file; false: the visitor has had enough. `next_sequence` becomes one past the last
// record seen.
bool read_file_records(const fs::path& path, std::uint64_t from_sequence, SegmentReadStats& stats,
                       std::uint64_t& next_sequence,
                       const std::function<bool(std::uint64_t, Message)>& visit) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::byte header[kHeaderBytes];
  if (!file || !read_exactly(file.get(), header) ||
      std::memcmp(header, kFileMagic, sizeof kFileMagic) != 0 ||
      load<std::uint32_t>(header + 8) != kFormatVersion ||
      load<std::uint64_t>(header + 24) != content_hash({header, 24})) {
    ++stats.torn_files;
    return true;
  }
  const off_t end = ::lseek(file.get(), 0, SEEK_END);
  off_t at = ::lseek(file.get(), off_t(kHeaderBytes), SEEK_SET);
  std::uint64_t sequence = load<std::uint64_t>(header + 16);
  std::vector<std::byte> payload;
  while (at < end) {
    if (!read_exactly(file.get(), header) ||
        std::memcmp(header, kRecordMagic, sizeof kRecordMagic) != 0 ||
        load<std::uint64_t>(header + 24) != content_hash({header, 24})) {
      ++stats.torn_files;
      break;
    }
    const auto payload_bytes = load<std::uint64_t>(header + 8);
    if (payload_bytes > kMaxPayloadBytes ||
        payload_bytes > std::uint64_t(end - at) - kHeaderBytes) {
      ++stats.torn_files;
      break;
    }
    at += off_t(kHeaderBytes + payload_bytes);
    next_sequence = std::max(next_sequence, sequence + 1);
    if (sequence < from_sequence) {
      ::lseek(file.get(), at, SEEK_SET);
      ++sequence;
      continue;
    }
    payload.resize(payload_bytes);
    if (!read_exactly(file.get(), payload)) {
      ++stats.torn_files;
      break;
    }
    if (load<std::uint32_t>(header + 4) == kForgotten) {
      ++stats.forgotten;
      ++sequence;
      continue;
    }
    auto message = content_hash(payload) == load<std::uint64_t>(header + 16) ? read_payload(payload)
                                                                             : std::nullopt;
    if (message) {
      ++stats.records;
      if (!visit(sequence, std::move(*message))) return false;
    } else {
      ++stats.skipped;
    }
    ++sequence;
  }
  return true;
}

}  // namespace

Result<SegmentReadStats> read_segments(const fs::path& path, std::uint64_t from_sequence,
                                       const std::function<bool(std::uint64_t, Message)>& visit) {
  std::error_code error;
  if (!fs::exists(path, error)) {
    return Error{ErrorCode::kNotFound, fmt::format("{}: no such file or folder", path.string())};
  }
  SegmentReadStats stats;
  std::uint64_t next_sequence = 0;
  for (const fs::path& file : segment_files(path)) {
    if (!read_file_records(file, from_sequence, stats, next_sequence, visit)) break;
  }
  return stats;
}

Result<std::uint64_t> forget_records(const fs::path& path,
                                     const std::function<bool(std::span<const Frame>)>& forget) {
  std::error_code error;
  if (!fs::exists(path, error))
    return Error{ErrorCode::kNotFound, fmt::format("{}: no such file or folder", path.string())};
  std::uint64_t forgotten = 0;
  for (const fs::path& name : segment_files(path)) {
    const auto failed = [&name] {
      return Error{ErrorCode::kIo, fmt::format("{}: {}", name.string(), std::strerror(errno))};
    };
    const Descriptor file(::open(name.c_str(), O_RDWR | O_CLOEXEC));
    if (!file) {
      if (errno == ENOENT) continue;  // deleted by the writer meanwhile
      return failed();
    }
    std::byte header[kHeaderBytes];
    if (!read_exactly(file.get(), header) ||
        std::memcmp(header, kFileMagic, sizeof kFileMagic) != 0)
      continue;
    const off_t end = ::lseek(file.get(), 0, SEEK_END);
    off_t at = ::lseek(file.get(), off_t(kHeaderBytes), SEEK_SET);
    bool changed = false;
    std::vector<std::byte> payload;
    while (at + off_t(kHeaderBytes) <= end) {
      ::lseek(file.get(), at, SEEK_SET);
      if (!read_exactly(file.get(), header) ||
          std::memcmp(header, kRecordMagic, sizeof kRecordMagic) != 0 ||
          load<std::uint64_t>(header + 24) != content_hash({header, 24}))
        break;
      const auto payload_bytes = load<std::uint64_t>(header + 8);
      if (payload_bytes > kMaxPayloadBytes ||
          payload_bytes > std::uint64_t(end - at) - kHeaderBytes)
        break;
      const off_t next = at + off_t(kHeaderBytes + payload_bytes);
      payload.resize(payload_bytes);
      if (!read_exactly(file.get(), payload)) break;
      if (load<std::uint32_t>(header + 4) != kForgotten) {
        // What cannot be read cannot be shown not to be meant: a damaged record goes as well.
        const auto message = content_hash(payload) == load<std::uint64_t>(header + 16)
                                 ? read_payload(payload)
                                 : std::nullopt;
        if (!message || forget(*message)) {
          std::fill(payload.begin(), payload.end(), std::byte{0});
          // The payload first: between the two writes the record is a damaged one.
          flag_forgotten(header, content_hash(payload));
          ::lseek(file.get(), at + off_t(kHeaderBytes), SEEK_SET);
          if (!write_all(file.get(), payload)) return failed();
          ::lseek(file.get(), at, SEEK_SET);
          if (!write_all(file.get(), header)) return failed();
          changed = true;
          ++forgotten;
        }
      }
      at = next;
    }
    if (changed && ::fsync(file.get()) != 0) return failed();
  }
  return forgotten;
}

TraceSegmentWriter::TraceSegmentWriter(fs::path folder, const SegmentOptions& options)
    : folder_(std::move(folder)), options_(options) {}

TraceSegmentWriter::~TraceSegmentWriter() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

Result<std::unique_ptr<TraceSegmentWriter>> TraceSegmentWriter::open(
    const fs::path& folder, const SegmentOptions& options) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) {
    return Error{ErrorCode::kIo,
                 fmt::format("{}: cannot create: {}", folder.string(), error.message())};
  }
  std::unique_ptr<TraceSegmentWriter> writer(new TraceSegmentWriter(folder, options));
  for (const fs::path& path : segment_files(folder)) {
    writer->files_.push_back({path, std::size_t(fs::file_size(path, error))});
    // A name carries its file's first number, so numbers go on even if every header were damaged.
    std::uint64_t first = 0;
    try {
      first = std::stoull(path.stem().string());
    } catch (const std::exception&) {
      continue;
    }
    writer->next_sequence_ = std::max(writer->next_sequence_, first + 1);
  }
  if (!writer->files_.empty()) {
    SegmentReadStats stats;
    read_file_records(writer->files_.back().path, ~std::uint64_t{0}, stats, writer->next_sequence_,
                      [](std::uint64_t, Message) { return true; });
  }
  return writer;
}

Status TraceSegmentWriter::start_file() {
  if (descriptor_ >= 0) ::close(descriptor_);
  descriptor_ = -1;
  const fs::path path = folder_ / fmt::format("{:020}.seg", next_sequence_);
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  const auto header = file_header(next_sequence_);
  if (descriptor < 0 || !write_all(descriptor, header)) {
    const Error error{ErrorCode::kIo,
                      fmt::format("{}: cannot create: {}", path.string(), std::strerror(errno))};
    if (descriptor >= 0) {
      ::close(descriptor);
      ::unlink(path.c_str());
    }
    return error;
  }
  descriptor_ = descriptor;
  opened_ = fs::file_time_type::clock::now();
  files_.push_back({path, header.size()});
  ++files_version_;
  return Ok{};
}

std::size_t TraceSegmentWriter::total_bytes() const {
  std::size_t total = 0;
  for (const File& file : files_) total += file.bytes;
  return total;
}

void TraceSegmentWriter::delete_oldest(std::size_t needed_bytes) {
  // The open file is never deleted: a file is closed at segment_bytes, a fraction of the total.
  while (files_.size() > 1 && total_bytes() + needed_bytes > options_.max_total_bytes) {
    std::error_code ignored;
    fs::remove(files_.front().path, ignored);
    files_.erase(files_.begin());
    ++files_version_;
  }
}

void TraceSegmentWriter::expire() {
  if (options_.max_age_s <= 0) return;
  const auto now = fs::file_time_type::clock::now();
  const auto age_s = [&](const fs::path& path) {
    std::error_code error;
    const auto written = fs::last_write_time(path, error);
    return error ? 0.0 : std::chrono::duration<double>(now - written).count();
  };
  if (descriptor_ >= 0 &&
      std::chrono::duration<double>(now - opened_).count() > options_.max_age_s / 8) {
    ::close(descriptor_);
    descriptor_ = -1;
  }
  if (files_.empty()) return;
  // The newest file's name carries the sequence on: it goes only once another stands in its place.
  if (descriptor_ < 0 && age_s(files_.back().path) > options_.max_age_s && !start_file()) return;
  const fs::path newest = files_.back().path;
  std::erase_if(files_, [&](const File& file) {
    if (file.path == newest || age_s(file.path) <= options_.max_age_s) return false;
    std::error_code ignored;
    fs::remove(file.path, ignored);
    ++files_version_;
    return true;
  });
}

Result<std::uint64_t> TraceSegmentWriter::append(std::span<const Frame> message) {
  expire();
  const std::vector<std::byte> bytes = record(message);
  if (bytes.size() + kHeaderBytes > options_.max_total_bytes) {
    return Error{ErrorCode::kOutOfRange,
                 fmt::format("{}: a record of {} bytes, at most {}", folder_.string(), bytes.size(),
                             options_.max_total_bytes)};
  }
  const bool full =
      descriptor_ >= 0 && (files_.back().bytes >= options_.segment_bytes ||
                           files_.back().bytes + bytes.size() > options_.max_total_bytes);
  if (descriptor_ < 0 || full) {
    if (auto s = start_file(); !s) return s.error();
  }
  delete_oldest(bytes.size());
  if (!write_all(descriptor_, bytes) || (options_.sync && ::fdatasync(descriptor_) != 0)) {
    const Error error{
        ErrorCode::kIo,
        fmt::format("{}: cannot append: {}", files_.back().path.string(), std::strerror(errno))};
    // Cut the half record off, so that what is appended once there is room again can be read.
    if (::ftruncate(descriptor_, off_t(files_.back().bytes)) != 0 ||
        ::lseek(descriptor_, off_t(files_.back().bytes), SEEK_SET) < 0) {
      ::close(descriptor_);
      descriptor_ = -1;
    }
    return error;
  }
  files_.back().bytes += bytes.size();
  return next_sequence_++;
}

}  // namespace foretoken
