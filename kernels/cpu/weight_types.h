// The structs of all weight types, from the files in cpu/types (CMakeLists.txt lists them), and
// what follows from them.
#pragma once

#include "kernels/cpu/weight_blocks.h"
#include "weight_type_files.h"

namespace foretoken::kernels {
namespace {

// Of a group of rows of n_in values in blocks of block_values.
template <class T>
FORETOKEN_INLINE std::size_t group_bytes_of(std::int64_t n_in, std::int64_t block_values) {
  const auto n_blocks = static_cast<std::size_t>(n_in / block_values);
  return (n_blocks * (T::record_bytes() + T::tail_bytes()) + 63) / 64 * 64;
}

}  // namespace
}  // namespace foretoken::kernels
