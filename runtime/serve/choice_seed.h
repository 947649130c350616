// The seed of choice i of a request with seed s: s itself for choice 0, else the splitmix64
// finaliser (Steele, Lea, Flood 2014) of s + i * 2^64/phi. Part of what clients can rely on: choice
// i of a request with n > 1 equals choice 0 of a request with that seed.
#pragma once

#include <cstdint>

#include "foretoken/kernels/splitmix64.h"

namespace foretoken {

inline std::uint64_t choice_seed(std::uint64_t seed, int choice) noexcept {
  if (choice == 0) return seed;
  return kernels::splitmix64(seed + static_cast<std::uint64_t>(choice) * kernels::kSplitMixStep);
}

}  // namespace foretoken
