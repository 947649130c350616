// Before the head runs: what a step of it is expected to add to a position's acceptance, by what
// the cheap kinds say of that position. Learned in pairs, at every position at which the head ran:
// was its choice right, and was theirs? Pairs, because the better of two calibrated confidences
// promises a little too much, and would hide what the head finds. Engine thread, or a replay's own.
#pragma once

#include <algorithm>
#include <array>

namespace foretoken {

class HeadLift {
 public:
  // The chance that what is drafted with the head is accepted. cheap: the calibrated confidence of
  // the best cheap proposal, 0 where there is none.
  float estimate(float cheap, bool sampled) const {
    const Cell& c = cells_[sampled ? 1 : 0][bin(cheap)];
    const float gain = (c.gain + prior(cheap) * kPriorStrength) / (c.trials + kPriorStrength);
    return std::clamp(cheap + gain, 0.0f, 1.0f);
  }
  void update(float cheap, bool sampled, bool right, bool cheap_right) {
    Cell& c = cells_[sampled ? 1 : 0][bin(cheap)];
    if (c.trials >= kMemory) {
      c.gain *= 1 - 1 / kMemory;
      c.trials *= 1 - 1 / kMemory;
    }
    c.gain += float(right) - float(cheap_right);
    c.trials += 1;
  }

 private:
  static constexpr std::array<float, 6> kEdges = {0.05f, 0.15f, 0.3f, 0.5f, 0.7f, 0.9f};
  // A head that is served has proved itself: it starts as if it found a sixth of what is missing.
  static float prior(float cheap) { return (1 - cheap) / 6; }
  static constexpr float kPriorStrength = 16;
  static constexpr float kMemory = 512;  // a gain of .05 stands out from its noise of .02
  static std::size_t bin(float cheap) {
    return std::size_t(std::ranges::upper_bound(kEdges, cheap) - kEdges.begin());
  }
  struct Cell {
    float gain = 0, trials = 0;  // sums, forgetting
  };
  std::array<std::array<Cell, kEdges.size() + 1>, 2> cells_{};
};

}  // namespace foretoken
