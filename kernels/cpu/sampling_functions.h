// The sampling kernels of one instruction set.
#pragma once

#include "foretoken/kernels/sampling.h"

namespace foretoken::kernels {

struct SamplingFunctions {
  decltype(&kernels::sample_full) sample_full;
  decltype(&kernels::sample_subset) sample_subset;
  decltype(&kernels::argmax) argmax;
  decltype(&kernels::log_sum_exp) log_sum_exp;
  decltype(&kernels::approximate_log_sum_exp) approximate_log_sum_exp;
  decltype(&kernels::logit_block_summary) logit_block_summary;
  decltype(&kernels::log_sum_exp_of_blocks) log_sum_exp_of_blocks;
};

const SamplingFunctions& sampling_scalar();
const SamplingFunctions& sampling_avx2();
const SamplingFunctions& sampling_avx512();

}  // namespace foretoken::kernels
