// Groups of packed weights without their types' structs (layout/packed_weights.h).
#pragma once

#include "foretoken/kernels/linear.h"

namespace foretoken::kernels {

std::size_t group_bytes(WeightType type, std::int64_t n_in);
inline std::int64_t n_groups(std::int64_t n_out) { return (n_out + kPackRows - 1) / kPackRows; }

}  // namespace foretoken::kernels
