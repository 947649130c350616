// The k largest of a long row. The maxima of blocks of 64 come first: the k-th largest of them is a
// lower bound of the k-th largest value, so that only about k blocks are looked into at all. Their
// candidates gather in a buffer that is cut back to k whenever it is full.
#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <vector>

#include "foretoken/kernels/sampling.h"
#include "kernels/cpu/cpu_ops.h"

namespace foretoken::kernels {
namespace {

struct Entry {
  float value;
  std::int32_t id;
};
// Value descending, then id ascending; NaN as minus infinity.
bool before(const Entry& a, const Entry& b) {
  if (a.value != b.value) return a.value > b.value;
  return a.id < b.id;
}

// Room for some T: on the stack for the common sizes, so that no thread's first call allocates; for
// more, what the thread keeps.
template <class T, std::size_t kOnStack>
class Room {
 public:
  T* of(std::size_t n) {
    if (n <= kOnStack) return on_stack_.data();
    thread_local std::vector<T> kept;
    if (kept.size() < n) kept.resize(n);
    return kept.data();
  }

 private:
  std::array<T, kOnStack> on_stack_;
};

class Candidates {
 public:
  // bound: at least k values of the row are not below it.
  Candidates(std::int64_t k, float bound)
      : k_(std::size_t(k)),
        capacity_(std::max(kOnStack, 2 * k_)),
        entries_(room_.of(capacity_)),
        threshold_(std::nextafter(bound, -INFINITY)) {}
  // Of a later id than all before it: with k entries of at least this value at hand it cannot
  // count.
  bool wanted(float value) const { return value > threshold_; }
  void add(float value, std::int32_t id) {
    if (!wanted(value)) return;
    entries_[size_++] = {value, id};
    if (size_ == capacity_) cut();
  }
  std::int64_t finish(std::int32_t* ids, float* values) {
    if (size_ > k_) cut();
    std::sort(entries_, entries_ + size_, before);
    for (std::size_t i = 0; i < size_; ++i) {
      ids[i] = entries_[i].id;
      values[i] = entries_[i].value;
    }
    return std::int64_t(size_);
  }

 private:
  static constexpr std::size_t kOnStack = 1024;
  void cut() {
    Entry* const kth = entries_ + (k_ - 1);
    std::nth_element(entries_, kth, entries_ + size_, before);
    threshold_ = kth->value;
    size_ = k_;
  }

  Room<Entry, kOnStack> room_;
  std::size_t k_, capacity_, size_ = 0;
  Entry* entries_;
  float threshold_;
};

}  // namespace

std::int64_t top_k(const float* x, std::int64_t n, std::int64_t k, std::int32_t* ids, float* values,
                   const float* maxima) {
  if (k > n) k = n;
  if (k <= 0) return 0;
  constexpr std::int64_t kBlock = kLogitBlock;
  const std::int64_t n_blocks = n / kBlock;
  Room<float, 8192> room;
  float* const found = room.of(std::size_t(2 * n_blocks));
  float* const sorted = found + n_blocks;
  if (!maxima) {
    logit_block_summary(x, n_blocks * kBlock, found, nullptr);
    maxima = found;
  }
  if (const std::int64_t few = cpu_ops().sampling.top_few(x, n, k, ids, values, maxima); few >= 0)
    return few;
  float bound = -INFINITY;
  if (n_blocks >= k) {
    std::copy(maxima, maxima + n_blocks, sorted);
    std::nth_element(sorted, sorted + (k - 1), sorted + n_blocks, std::greater<>());
    bound = sorted[k - 1];
  }
  Candidates candidates(k, bound);
  for (std::int64_t b = 0; b < n_blocks; ++b) {
    if (!candidates.wanted(maxima[b])) continue;
    for (std::int64_t j = b * kBlock; j < (b + 1) * kBlock; ++j)
      candidates.add(x[j], static_cast<std::int32_t>(j));
  }
  for (std::int64_t j = n_blocks * kBlock; j < n; ++j)
    candidates.add(x[j], static_cast<std::int32_t>(j));
  std::int64_t count = candidates.finish(ids, values);
  // Fewer than k values above minus infinity: masked tokens (and NaN) fill up, by id.
  for (std::int64_t j = 0; j < n && count < k; ++j) {
    if (x[j] > -INFINITY) continue;
    ids[count] = static_cast<std::int32_t>(j);
    values[count++] = x[j];
  }
  return count;
}

}  // namespace foretoken::kernels
