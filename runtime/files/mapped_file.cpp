#include "runtime/files/mapped_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace foretoken {
namespace {

Error io_error(const std::string& path, const char* what) {
  const int code = errno;
  return {code == ENOENT ? ErrorCode::kNotFound : ErrorCode::kIo,
          fmt::format("{}: {}: {}", path, what, std::strerror(code))};
}

}  // namespace

Result<MappedFile> MappedFile::open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return io_error(path, "cannot open");
  struct stat info = {};
  if (fstat(fd, &info) != 0) {
    Error error = io_error(path, "cannot stat");
    ::close(fd);
    return error;
  }
  if (!S_ISREG(info.st_mode)) {
    ::close(fd);
    return Error{ErrorCode::kInvalidInput, fmt::format("{}: not a regular file", path)};
  }
  if (info.st_size == 0) {
    ::close(fd);
    return Error{ErrorCode::kInvalidInput, fmt::format("{}: the file is empty", path)};
  }
  const auto size = static_cast<std::size_t>(info.st_size);
  void* map = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  Error map_error = map == MAP_FAILED ? io_error(path, "cannot map") : Error{};
  ::close(fd);
  if (map == MAP_FAILED) return map_error;
  return MappedFile({static_cast<const std::byte*>(map), size});
}

MappedFile::~MappedFile() {
  if (mapped()) munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}
MappedFile::MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

}  // namespace foretoken
