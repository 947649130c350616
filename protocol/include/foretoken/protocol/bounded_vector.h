// A vector of at most N elements that lies inside its owner: for what is filled in the hot path,
// where nothing may be allocated, and whose bound is a rule of the format anyway.
// Invariant: size() <= N; more is a bug and stops the process.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <iterator>
#include <ranges>
#include <type_traits>

namespace foretoken {

template <class T, std::size_t N>
requires std::is_trivially_copyable_v<T>
class BoundedVector {
 public:
  using value_type = T;
  using iterator = T*;
  using const_iterator = const T*;
  using reference = T&;
  using const_reference = const T&;
  using size_type = std::size_t;
  using difference_type = std::ptrdiff_t;

  BoundedVector() = default;
  BoundedVector(std::initializer_list<T> values) { assign(values.begin(), values.end()); }
  // Of any other range: of vectors, by `record.tokens = draft.tokens`.
  template <std::ranges::contiguous_range Range>
  requires(!std::is_same_v<std::remove_cvref_t<Range>, BoundedVector>)
      BoundedVector(const Range& values) {  // NOLINT: meant to be implicit
    assign(std::ranges::begin(values), std::ranges::end(values));
  }

  template <std::input_iterator Iterator>
  void assign(Iterator first, Iterator last) {
    size_ = checked(static_cast<std::size_t>(std::distance(first, last)));
    std::copy(first, last, items_.begin());
  }
  void assign(std::size_t n, const T& value) {
    size_ = checked(n);
    std::fill_n(items_.begin(), n, value);
  }
  void push_back(const T& value) {
    size_ = checked(size() + 1);
    items_[size_ - 1u] = value;
  }
  void pop_back() { --size_; }
  void clear() { size_ = 0; }
  void resize(std::size_t n) {
    if (n > size()) std::fill(end(), items_.data() + checked(n), T{});
    size_ = checked(n);
  }

  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  T* data() { return items_.data(); }
  const T* data() const { return items_.data(); }
  T* begin() { return data(); }
  T* end() { return data() + size_; }
  const T* begin() const { return data(); }
  const T* end() const { return data() + size_; }
  T& operator[](std::size_t i) { return items_[i]; }
  const T& operator[](std::size_t i) const { return items_[i]; }
  T& front() { return items_[0]; }
  const T& front() const { return items_[0]; }
  T& back() { return items_[size_ - 1u]; }
  const T& back() const { return items_[size_ - 1u]; }

  // Of any other range too: `record.tokens == std::vector{...}`.
  template <std::ranges::contiguous_range Range>
  friend bool operator==(const BoundedVector& a, const Range& b) {
    return std::ranges::equal(a, b);
  }

 private:
  using Size = std::conditional_t<(N < 256), std::uint8_t, std::uint16_t>;
  static_assert(N < 65536);
  static Size checked(std::size_t n) {
    if (n > N) std::abort();
    return static_cast<Size>(n);
  }
  std::array<T, N> items_{};
  Size size_ = 0;
};

}  // namespace foretoken
