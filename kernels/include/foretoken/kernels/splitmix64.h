// splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014):
// for coins, seeds and hashes of ids, where a draw must be reproducible and need not be strong. The
// sampler's noise is Philox (sampling.h).
#pragma once

#include <cstdint>

namespace foretoken::kernels {

inline constexpr std::uint64_t kSplitMixStep = 0x9e3779b97f4a7c15u;

// The finaliser: a bijection in which every input bit reaches every output bit.
constexpr std::uint64_t splitmix64(std::uint64_t z) noexcept {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// The upper 53 bits as a number in [0, 1).
constexpr double unit_interval(std::uint64_t bits) noexcept {
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

// The next of a sequence of such numbers.
constexpr double next_uniform(std::uint64_t& state) noexcept {
  return unit_interval(splitmix64(state += kSplitMixStep));
}

}  // namespace foretoken::kernels
