// The k largest of a long row: blocks whose maximum does not exceed the current k-th largest are
// skipped; the others' candidates gather in a buffer that is cut back to k whenever it is full.
// Expected candidates after the first k: k ln(n / k), a few hundred in a vocabulary.
#include <algorithm>
#include <cmath>
#include <vector>

#include "foretoken/kernels/isa.h"
#include "foretoken/kernels/sampling.h"
#include "sampling_functions.h"

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

void find_block_maxima(const float* x, std::int64_t n_blocks, float* maxima) {
  switch (active_isa()) {
    case Isa::kScalar:
      return sampling_scalar().block_maxima(x, n_blocks, maxima);
    case Isa::kAvx2:
      return sampling_avx2().block_maxima(x, n_blocks, maxima);
    default:
      return sampling_avx512().block_maxima(x, n_blocks, maxima);
  }
}

class Candidates {
 public:
  // entries: a buffer kept between calls, so that a call allocates only to grow it.
  Candidates(std::int64_t k, std::vector<Entry>* entries)
      : k_(static_cast<std::size_t>(k)), entries_(*entries) {
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
  float threshold_ = -INFINITY;
};

}  // namespace

std::int64_t top_k(const float* x, std::int64_t n, std::int64_t k, std::int32_t* ids,
                   float* values) {
  if (k > n) k = n;
  if (k <= 0) return 0;
  thread_local std::vector<Entry> buffer;
  Candidates candidates(k, &buffer);
  constexpr std::int64_t kBlock = 64, kBlocksAtOnce = 64;
  float maxima[kBlocksAtOnce];
  std::int64_t i = 0;
  while (n - i >= kBlock) {
    const std::int64_t n_blocks = std::min(kBlocksAtOnce, (n - i) / kBlock);
    find_block_maxima(x + i, n_blocks, maxima);
    for (std::int64_t b = 0; b < n_blocks; ++b, i += kBlock) {
      if (!candidates.wanted(maxima[b])) continue;
      for (std::int64_t j = i; j < i + kBlock; ++j)
        candidates.add(x[j], static_cast<std::int32_t>(j));
    }
  }
  for (; i < n; ++i) candidates.add(x[i], static_cast<std::int32_t>(i));
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
