// The sampling kernels of one instruction set.
#pragma once

#include "foretoken/kernels/sampling.h"

namespace foretoken::kernels {

inline constexpr std::int64_t kFew = 128;

struct SamplingFunctions {
  decltype(&kernels::sample_full) sample_full;
  decltype(&kernels::sample_subset) sample_subset;
  decltype(&kernels::argmax) argmax;
  decltype(&kernels::log_sum_exp) log_sum_exp;
  decltype(&kernels::approximate_log_sum_exp) approximate_log_sum_exp;
  decltype(&kernels::logit_block_summary) logit_block_summary;
  decltype(&kernels::log_sum_exp_of_blocks) log_sum_exp_of_blocks;
  // top_k() of at most kFew values of a row with at least that many blocks above minus infinity; -1
  // where there are fewer, or too many values that tie.
  std::int64_t (*top_few)(const float* x, std::int64_t n, std::int64_t k, std::int32_t* ids,
                          float* values, const float* maxima);
};

const SamplingFunctions& sampling_active();
const SamplingFunctions& sampling_scalar();
const SamplingFunctions& sampling_avx2();
const SamplingFunctions& sampling_avx512();

}  // namespace foretoken::kernels
