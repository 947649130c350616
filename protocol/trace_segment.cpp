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

// The records of one file, one after another.
class RecordFile {
 public:
  RecordFile(const fs::path& path, int flags) : file_(::open(path.c_str(), flags | O_CLOEXEC)) {
    good_ = file_ && read_exactly(file_.get(), header_) &&
            std::memcmp(header_, kFileMagic, sizeof kFileMagic) == 0;
    if (!good_) return;
    whole_ = load<std::uint32_t>(header_ + 8) == kFormatVersion && header_matches();
    sequence_ = load<std::uint64_t>(header_ + 16) - 1;
    end_ = ::lseek(file_.get(), 0, SEEK_END);
  }
  const Descriptor& file() const { return file_; }
  bool good() const { return good_; }    // it begins as a segment does
  bool whole() const { return whole_; }  // and its header is of this format and undamaged
  bool torn() const { return torn_; }    // next() ended before the file's end

  // Goes to the next record, reading its header; false: there is none that could be read.
  bool next() {
    at_ = next_;
    if (at_ >= end_) return false;
    ::lseek(file_.get(), at_, SEEK_SET);
    torn_ = !read_exactly(file_.get(), header_) ||
            std::memcmp(header_, kRecordMagic, sizeof kRecordMagic) != 0 || !header_matches();
    if (torn_) return false;
    const auto bytes = load<std::uint64_t>(header_ + 8);
    torn_ = bytes > kMaxPayloadBytes || bytes > std::uint64_t(end_ - at_) - kHeaderBytes;
    if (torn_) return false;
    payload_bytes_ = bytes;
    next_ = at_ + off_t(kHeaderBytes + bytes);
    ++sequence_;
    return true;
  }
  std::uint64_t sequence() const { return sequence_; }
  bool forgotten() const { return load<std::uint32_t>(header_ + 4) == kForgotten; }
  // Of this record; false: it could not be read.
  bool read() {
    payload_.resize(payload_bytes_);
    torn_ = !read_exactly(file_.get(), payload_);
    return !torn_;
  }
  std::optional<Message> message() const {  // nullopt: damaged
    return content_hash(payload_) == load<std::uint64_t>(header_ + 16) ? read_payload(payload_)
                                                                       : std::nullopt;
  }
  // Overwrites this record with zeros, the payload first: between the two writes it is a damaged
  // one. false: errno says why.
  bool forget() {
    std::fill(payload_.begin(), payload_.end(), std::byte{0});
    flag_forgotten(header_, content_hash(payload_));
    ::lseek(file_.get(), at_ + off_t(kHeaderBytes), SEEK_SET);
    if (!write_all(file_.get(), payload_)) return false;
    ::lseek(file_.get(), at_, SEEK_SET);
    return write_all(file_.get(), header_);
  }

 private:
  bool header_matches() const {
    return load<std::uint64_t>(header_ + 24) == content_hash({header_, 24});
  }
  const Descriptor file_;
  std::byte header_[kHeaderBytes];
  bool good_ = false, whole_ = false, torn_ = false;
  off_t at_ = 0, next_ = off_t(kHeaderBytes), end_ = 0;
  std::uint64_t sequence_ = 0, payload_bytes_ = 0;
  std::vector<std::byte> payload_;
};

// Visits one file; false: the visitor has had enough. `next_sequence` becomes one past the last
// record seen.
bool read_file_records(const fs::path& path, std::uint64_t from_sequence, SegmentReadStats& stats,
                       std::uint64_t& next_sequence,
                       const std::function<bool(std::uint64_t, Message)>& visit) {
  RecordFile file(path, O_RDONLY);
  if (!file.whole()) {
    ++stats.torn_files;
    return true;
  }
  while (file.next()) {
    next_sequence = std::max(next_sequence, file.sequence() + 1);
    if (file.sequence() < from_sequence) continue;
    if (!file.read()) break;
    if (file.forgotten()) {
      ++stats.forgotten;
    } else if (auto message = file.message()) {
      ++stats.records;
      if (!visit(file.sequence(), std::move(*message))) return false;
    } else {
      ++stats.skipped;
    }
  }
  stats.torn_files += file.torn();
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
    RecordFile records(name, O_RDWR);
    if (!records.file()) {
      if (errno == ENOENT) continue;  // deleted by the writer meanwhile
      return failed();
    }
    bool changed = false;
    while (records.good() && records.next() && records.read()) {
      if (records.forgotten()) continue;
      // What cannot be read cannot be shown not to be meant: a damaged record goes as well.
      const auto message = records.message();
      if (message && !forget(*message)) continue;
      if (!records.forget()) return failed();
      changed = true;
      ++forgotten;
    }
    if (changed && ::fsync(records.file().get()) != 0) return failed();
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
