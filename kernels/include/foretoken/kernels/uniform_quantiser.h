// Uniform quantisers of 2^bits levels with the least squared error on a unit Gaussian (Max 1960,
// whose table ends at 36 levels: 256 computed). Data alone: sources of every instruction set
// include it.
#pragma once

namespace foretoken::kernels {

struct UniformQuantiser {
  double step, error;  // in deviations; in variances
};
// By bits: 2, 4 and 8.
inline constexpr UniformQuantiser kUniformQuantiser[] = {
    {}, {}, {0.9957, 0.1188}, {}, {0.3352, 0.01154}, {}, {}, {}, {0.03076, 8.769e-5}};

}  // namespace foretoken::kernels
