// A file's bytes, mapped read-only for as long as this object lives.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "foretoken/protocol/result.h"

namespace foretoken {

class MappedFile {
 public:
  // Errors: kNotFound, kIo, kInvalidInput (not a regular file, empty), beginning with the path.
  static Result<MappedFile> open(const std::string& path);
  MappedFile() = default;
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  std::span<const std::byte> bytes() const { return bytes_; }
  bool mapped() const { return bytes_.data() != nullptr; }

 private:
  explicit MappedFile(std::span<const std::byte> bytes) : bytes_(bytes) {}
  std::span<const std::byte> bytes_;
};

}  // namespace foretoken
