// The k largest of a long row. The maxima of blocks of 64 come first: the k-th largest of them is a
// lower bound of the k-th largest value, so that only about k blocks are looked into at all. Their
// candidates gather in a buffer that is cut back to k whenever it is full.
#include <algorithm>
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

class Candidates {
 public:
  // entries: a buffer kept between calls, so that a call allocates only to grow it. bound: at least
  // k values of the row are not below it.
  Candidates(std::int64_t k, float bound, std::vector<Entry>* entries)
      : k_(static_cast<std::size_t>(k)),
        entries_(*entries),
        threshold_(std::nextafter(bound, -INFINITY)) {
    entries_.clear();
    capacity_ = 2 * k_ < 1024 ? 1024 : 2 * k_;
    if (entries_.capacity() < capacity_) entries_.reserve(capacity_);
  }
  // Of a later id than all before it: with k entries of at least this value at hand it cannot
  // count.
  bool wanted(float value) const { return value > threshold_; }
  void add(float value, std::int32_t id) {
    if (!wanted(value)) return;
    entries_.push_back({value, id});
    if (entries_.size() == capacity_) cut();
  }
  std::int64_t finish(std::int32_t* ids, float* values) {
    if (entries_.size() > k_) cut();
    std::sort(entries_.begin(), entries_.end(), before);
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      ids[i] = entries_[i].id;
      values[i] = entries_[i].value;
    }
    return static_cast<std::int64_t>(entries_.size());
  }

 private:
  void cut() {
    const auto kth = entries_.begin() + static_cast<std::ptrdiff_t>(k_ - 1);
    std::nth_element(entries_.begin(), kth, entries_.end(), before);
    threshold_ = kth->value;
    entries_.resize(k_);
  }

  std::size_t k_, capacity_ = 0;
  std::vector<Entry>& entries_;
  float threshold_;
};

}  // namespace

std::int64_t top_k(const float* x, std::int64_t n, std::int64_t k, std::int32_t* ids, float* values,
                   const float* maxima) {
  if (k > n) k = n;
  if (k <= 0) return 0;
  constexpr std::int64_t kBlock = kLogitBlock;
  thread_local std::vector<Entry> buffer;
  thread_local std::vector<float> found, sorted;
  const std::int64_t n_blocks = n / kBlock;
  if (!maxima) {
    found.resize(static_cast<std::size_t>(n_blocks));
    logit_block_summary(x, n_blocks * kBlock, found.data(), nullptr);
    maxima = found.data();
  }
  if (const std::int64_t few = cpu_ops().sampling.top_few(x, n, k, ids, values, maxima); few >= 0)
    return few;
  float bound = -INFINITY;
  if (n_blocks >= k) {
    sorted.assign(maxima, maxima + n_blocks);
    const auto kth = sorted.begin() + static_cast<std::ptrdiff_t>(k - 1);
    std::nth_element(sorted.begin(), kth, sorted.end(), std::greater<>());
    bound = *kth;
  }
  Candidates candidates(k, bound, &buffer);
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
