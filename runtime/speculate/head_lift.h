// Before the head runs: how likely what it would propose (or leave to the cheap kinds) is accepted,
// from what the cheap kinds say of that position. Where they are sure the head adds nothing, where
// they know nothing it may: learned from every position at which it ran. Engine thread.
#pragma once

#include <algorithm>
#include <array>

namespace foretoken {

class HeadLift {
 public:
  // cheap: the calibrated confidence of the best cheap proposal, 0 where there is none.
  float estimate(float cheap, bool sampled) const {
    const Cell& c = cells_[sampled ? 1 : 0][bin(cheap)];
    return (c.hits + prior(cheap) * kPriorStrength) / (c.trials + kPriorStrength);
  }
  void update(float cheap, bool sampled, bool hit) {
    Cell& c = cells_[sampled ? 1 : 0][bin(cheap)];
    if (c.trials >= kMemory) {
      c.hits *= 1 - 1 / kMemory;
      c.trials *= 1 - 1 / kMemory;
    }
    c.hits += hit ? 1.0f : 0.0f;
    c.trials += 1;
  }

 private:
  static constexpr std::array<float, 8> kEdges = {0.03f, 0.1f, 0.2f,  0.3f,
                                                  0.45f, 0.6f, 0.75f, 0.9f};
  // A head that is served has proved itself: it starts as if it found a quarter of what is missing.
  static float prior(float cheap) { return cheap + 0.25f * (1 - cheap); }
  static constexpr float kPriorStrength = 8;
  static constexpr float kMemory = 256;  // as the estimator's cells
  static std::size_t bin(float cheap) {
    return std::size_t(std::ranges::upper_bound(kEdges, cheap) - kEdges.begin());
  }
  struct Cell {
    float hits = 0, trials = 0;
  };
  std::array<std::array<Cell, kEdges.size() + 1>, 2> cells_{};
};

}  // namespace foretoken
