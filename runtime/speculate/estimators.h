// What the speculators' estimates are made of. Plain values; nothing allocates.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

namespace foretoken {

// A mean of about the last `memory` values.
struct ForgettingMean {
  float sum = 0, weight = 0;
  void add(float value, float memory) {
    if (weight >= memory) {
      const float keep = 1 - 1 / memory;
      sum *= keep;
      weight *= keep;
    }
    sum += value;
    weight += 1;
  }
  // As if `strength` values of `prior` had come first.
  float with_prior(float prior, float strength) const {
    return (sum + prior * strength) / (weight + strength);
  }
};

// Pool adjacent violators: the weighted least-squares non-decreasing curve through points that are
// added in order. The blocks are the caller's memory, one a point at most.
template <class Real>
class IsotonicFit {
 public:
  struct Block {
    Real mean = 0, weight = 0;
    int width = 0;
  };
  explicit IsotonicFit(std::span<Block> blocks) : blocks_(blocks) {}
  void add(Real mean, Real weight) {
    Block block{mean, weight, 1};
    for (; n_ > 0 && blocks_[n_ - 1].mean >= block.mean; --n_) {
      const Block& left = blocks_[n_ - 1];
      const Real sum = left.weight + block.weight;
      block = {(left.mean * left.weight + block.mean * block.weight) / sum, sum,
               block.width + left.width};
    }
    blocks_[n_++] = block;
  }
  // The curve's value at each point.
  template <class Out>
  void write(Out out) const {
    for (const Block& block : blocks_.first(n_)) out = std::fill_n(out, block.width, block.mean);
  }

 private:
  std::span<Block> blocks_;
  std::size_t n_ = 0;
};

}  // namespace foretoken
