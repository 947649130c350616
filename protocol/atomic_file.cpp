#include "foretoken/protocol/atomic_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "protocol/posix_file.h"

namespace foretoken {

Status write_file_atomically(const std::filesystem::path& path, std::span<const std::byte> bytes,
                             unsigned mode) {
  const auto failed = [&](const char* what) {
    return Error{ErrorCode::kIo,
                 fmt::format("{}: {}: {}", path.string(), what, std::strerror(errno))};
  };
  // The process id keeps two writers of one file from writing into one temporary.
  const std::string temporary = fmt::format("{}.{}.tmp", path.string(), ::getpid());
  {
    const Descriptor file(
        ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode));
    if (!file) return failed("cannot create the temporary file");
    if (!write_all(file.get(), bytes) || ::fsync(file.get()) != 0) {
      const Error error = failed("cannot write");
      ::unlink(temporary.c_str());
      return error;
    }
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) {
    const Error error = failed("cannot rename into place");
    ::unlink(temporary.c_str());
    return error;
  }
  const auto parent = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  const Descriptor folder(::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder) ::fsync(folder.get());
  return Ok{};
}

Status write_report(const std::filesystem::path& path, const std::string& text) {
  if (!path.empty() && path != "-")
    return write_file_atomically(path, std::as_bytes(std::span(text)));
  fmt::print("{}", text);
  return Ok{};
}

void remove_leftovers(const std::filesystem::path& folder) {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    if (entry.path().extension() == ".tmp") std::filesystem::remove(entry.path(), ignored);
  }
}

Result<std::vector<std::byte>> read_file(const std::filesystem::path& path, std::size_t max_bytes) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) {
    return Error{errno == ENOENT ? ErrorCode::kNotFound : ErrorCode::kIo,
                 fmt::format("{}: {}", path.string(), std::strerror(errno))};
  }
  struct stat status {};
  if (::fstat(file.get(), &status) != 0 || !S_ISREG(status.st_mode)) {
    return Error{ErrorCode::kIo, fmt::format("{}: not a regular file", path.string())};
  }
  if (std::size_t(status.st_size) > max_bytes) {
    return Error{ErrorCode::kOutOfRange,
                 fmt::format("{}: {} bytes, at most {}", path.string(), status.st_size, max_bytes)};
  }
  std::vector<std::byte> bytes(std::size_t(status.st_size));
  if (!read_exactly(file.get(), bytes)) {
    return Error{ErrorCode::kIo,
                 fmt::format("{}: cannot read {} bytes", path.string(), bytes.size())};
  }
  return bytes;
}

}  // namespace foretoken
