// Reading and writing little-endian scalars and arrays at unaligned addresses. Everything on the
// wire is little-endian; a big-endian host is refused at compile time.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

namespace foretoken {

static_assert(std::endian::native == std::endian::little, "the wire format is little-endian");

template <class T>
void store(std::byte* at, T value) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::memcpy(at, &value, sizeof value);
}

template <class T>
T load(const std::byte* at) {
  static_assert(std::is_trivially_copyable_v<T>);
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

template <class T>
std::vector<std::byte> to_bytes(std::span<const T> values) {
  std::vector<std::byte> bytes(values.size_bytes());
  if (!bytes.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

// The bytes of a FlatBuffers vector; false: there is none, or it has another length.
template <class Vector, std::size_t N>
bool copy_exactly(const Vector* from, std::array<std::uint8_t, N>& to) {
  if (!from || from->size() != N) return false;
  std::memcpy(to.data(), from->data(), N);
  return true;
}

// The caller has checked that bytes.size() is a multiple of sizeof(T).
template <class T>
std::vector<T> from_bytes(std::span<const std::byte> bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

}  // namespace foretoken
