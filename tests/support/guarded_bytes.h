// Bytes to parse whose end is the end of the memory that may be read: a parser that reads one byte
// further ends the process, in every build.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <span>

namespace foretoken::testing {

class GuardedBytes {
 public:
  explicit GuardedBytes(std::span<const std::byte> bytes) {
    const auto page = std::size_t(sysconf(_SC_PAGESIZE));
    const std::size_t readable = (bytes.size() + page - 1) / page * page;
    mapped_ = readable + page;
    base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base_ == MAP_FAILED) std::abort();
    auto* end = static_cast<std::byte*>(base_) + readable;
    if (mprotect(end, page, PROT_NONE) != 0) std::abort();
    bytes_ = {end - bytes.size(), bytes.size()};
    std::copy(bytes.begin(), bytes.end(), end - bytes.size());
  }
  ~GuardedBytes() { munmap(base_, mapped_); }
  GuardedBytes(const GuardedBytes&) = delete;
  GuardedBytes& operator=(const GuardedBytes&) = delete;

  std::span<const std::byte> get() const { return bytes_; }

 private:
  void* base_;
  std::size_t mapped_;
  std::span<const std::byte> bytes_;
};

}  // namespace foretoken::testing
