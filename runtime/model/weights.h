// Memory for packed weights, and the kernels' types of what a file holds. Immutable after load.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <optional>
#include <vector>

#include "foretoken/kernels/linear.h"

namespace foretoken {

// 64-byte aligned anonymous memory, on huge pages where the system grants them.
class WeightBuffer {
 public:
  WeightBuffer() = default;
  explicit WeightBuffer(std::size_t bytes);  // data() is null if the system has no memory
  std::byte* data() const { return data_.get(); }
  std::size_t bytes() const { return bytes_; }

 private:
  friend class WeightArena;
  std::shared_ptr<std::byte> data_;  // keeps the mapping that it lies in
  std::size_t bytes_ = 0;
};

// One mapping for all the matrices of a model: only whole, aligned 2 MiB of a mapping become huge
// pages, and a matrix that is streamed from small ones is read slower.
class WeightArena {
 public:
  explicit WeightArena(std::size_t bytes);  // of address space: what is not taken costs no memory
  // What no longer fits has a mapping of its own.
  WeightBuffer take(std::size_t bytes);

 private:
  WeightBuffer whole_;
  std::size_t taken_ = 0;
};

struct Matrix {
  kernels::PackedMatrix packed;  // a view of `buffer`
  WeightBuffer buffer;
  std::size_t file_bytes = 0;

  // Memory for [n_out, n_in], of the arena if there is one; false: the system has none.
  bool allocate(kernels::WeightType type, std::int64_t n_out, std::int64_t n_in,
                WeightArena* arena = nullptr);
  // Packs all rows: fill(row, out) writes one in the type's file format.
  template <class Fill>
  void pack(const Fill& fill) {
    const std::size_t row_bytes = kernels::weight_row_bytes(packed.type, packed.n_in);
    std::vector<std::byte> strip(row_bytes * kernels::kPackRows);
    for (std::int64_t first = 0; first < packed.n_out; first += kernels::kPackRows) {
      const std::int64_t n = std::min<std::int64_t>(kernels::kPackRows, packed.n_out - first);
      for (std::int64_t i = 0; i < n; ++i)
        fill(first + i, strip.data() + std::size_t(i) * row_bytes);
      kernels::pack_rows(packed, first, n, strip.data());
    }
  }
};

// The kernels' type of a ggml tensor type; nullopt: none reads it.
std::optional<kernels::WeightType> weight_type_of(std::uint32_t ggml_type);

}  // namespace foretoken
