// The linear kernels of one instruction set: groups [first_group, last_group) of one matrix, every
// row of x. y: [n_rows, n_out], row stride y_stride.
#pragma once

#include "activations.h"
#include "foretoken/kernels/linear.h"

namespace foretoken::kernels {

struct LinearTask {
  PackedMatrix w;
  const Activations::Impl* x;
  const float* bias;  // or null
  float* y;
  std::int64_t y_stride;
};
using LinearGroups = void (*)(const LinearTask& task, std::int64_t first_group,
                              std::int64_t last_group);

void linear_groups_scalar(const LinearTask& task, std::int64_t first_group,
                          std::int64_t last_group);
void linear_groups_avx2(const LinearTask& task, std::int64_t first_group, std::int64_t last_group);
void linear_groups_avx512(const LinearTask& task, std::int64_t first_group,
                          std::int64_t last_group);
void linear_groups_avx512_vnni(const LinearTask& task, std::int64_t first_group,
                               std::int64_t last_group);
void linear_groups_avx512_amx(const LinearTask& task, std::int64_t first_group,
                              std::int64_t last_group);

}  // namespace foretoken::kernels
