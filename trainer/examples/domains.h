// What is kept by domain of the traffic, in the order in which domains came. Names are the
// clients', of any length and number: their hashes are kept, and those past kMostDomains share the
// last entry.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace foretoken::trainer {

inline constexpr std::size_t kMostDomains = 64;

// The entry of a domain, made where there is none and there is room. D: an aggregate that begins
// with the `name`.
template <class D>
D& entry_of_domain(std::vector<D>& domains, std::uint64_t name) {
  const auto at = std::ranges::find(domains, name, &D::name);
  if (at != domains.end()) return *at;
  if (domains.size() < kMostDomains) domains.push_back({.name = name});
  return domains.back();
}

}  // namespace foretoken::trainer
