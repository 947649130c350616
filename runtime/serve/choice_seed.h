// The seed of choice i of a request with seed s: s itself for choice 0, else the splitmix64
// finaliser (Steele, Lea, Flood 2014) of s + i * 2^64/phi. Part of what clients can rely on: choice
// i of a request with n > 1 equals choice 0 of a request with that seed.
#pragma once

#include <cstdint>

namespace foretoken {

inline std::uint64_t choice_seed(std::uint64_t seed, int choice) noexcept {
  if (choice == 0) return seed;
  std::uint64_t z = seed + static_cast<std::uint64_t>(choice) * 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

}  // namespace foretoken
