// A second device: memory that the host may not touch, and the CPU's kernels to work on it. Every
// buffer that the engine could reach by a pointer (pages, logits, hidden states, what a head keeps)
// is unmapped for reading and writing outside of the device's own operations, so that a host access
// ends the process: "host access to device memory".
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <mutex>

#include "runtime/model/model.h"

namespace foretoken::testing {

class GuardedMemory final : public std::pmr::memory_resource {
 public:
  explicit GuardedMemory(std::size_t bytes = std::size_t(256) << 20);  // all it will ever give
  ~GuardedMemory() override;

  // While one is open, the memory may be touched.
  class Operation {
   public:
    explicit Operation(GuardedMemory& memory) : memory_(memory) { memory_.open(); }
    ~Operation() { memory_.close(); }
    Operation(const Operation&) = delete;
    Operation& operator=(const Operation&) = delete;

   private:
    GuardedMemory& memory_;
  };
  std::int64_t operations() const { return operations_; }

 private:
  void open();
  void close();
  void protect(bool readable);
  void* do_allocate(std::size_t bytes, std::size_t alignment) override;
  void do_deallocate(void*, std::size_t, std::size_t) override {}  // with all of it
  bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }

  std::mutex mutex_;
  std::byte* base_ = nullptr;
  const std::size_t bytes_;
  std::size_t used_ = 0;
  int depth_ = 0;
  std::atomic<std::int64_t> operations_{0};
};

enum class GuardedFault {
  kNone,
  kRowsLeak,      // host_row() gives the device's own address
  kFeaturesLeak,  // hidden states are read from it to be logged
};

// The same model on such a device.
std::shared_ptr<const Model> on_guarded_device(std::shared_ptr<const Model> model,
                                               std::shared_ptr<GuardedMemory> memory,
                                               GuardedFault fault = GuardedFault::kNone);

}  // namespace foretoken::testing
