#include "trainer/learner/state_map.h"

#include <cstdint>

namespace foretoken::trainer {

// u64 length of the name, the name, u64 bytes of the array, the array; repeated.
std::vector<std::byte> StateMap::serialize() const {
  std::size_t total = 0;
  for (const auto& [name, bytes] : arrays_) total += 16 + name.size() + bytes.size();
  std::vector<std::byte> out;
  out.reserve(total);
  const auto append = [&](const void* from, std::size_t n) {
    const auto* at = static_cast<const std::byte*>(from);
    out.insert(out.end(), at, at + n);
  };
  for (const auto& [name, bytes] : arrays_) {
    const std::uint64_t lengths[2] = {name.size(), bytes.size()};
    append(&lengths[0], 8);
    append(name.data(), name.size());
    append(&lengths[1], 8);
    append(bytes.data(), bytes.size());
  }
  return out;
}

Result<StateMap> StateMap::parse(std::span<const std::byte> bytes) {
  const Error truncated{ErrorCode::kInvalidInput, "learner state: truncated"};
  StateMap map;
  const auto take = [&](std::size_t n) {
    const auto piece = bytes.first(n);
    bytes = bytes.subspan(n);
    return piece;
  };
  const auto length = [&](std::uint64_t& value) {
    if (bytes.size() < 8) return false;
    std::memcpy(&value, take(8).data(), 8);
    return value <= bytes.size();
  };
  while (!bytes.empty()) {
    std::uint64_t n = 0;
    if (!length(n)) return truncated;
    const auto name = take(n);
    if (!length(n)) return truncated;
    const auto array = take(n);
    map.arrays_[std::string(reinterpret_cast<const char*>(name.data()), name.size())].assign(
        array.begin(), array.end());
  }
  return map;
}

}  // namespace foretoken::trainer
