// How often the fixed n-gram rule was right, by the class of the candidate it chose: its raw
// confidence. Engine thread (live) or a replay's own.
#pragma once

#include <array>
#include <cstdint>

#include "runtime/speculate/candidates.h"

namespace foretoken {

class NgramHitRates {
 public:
  float rate(std::uint8_t klass, bool sampled) const {
    const Hits& h = hits_[sampled ? 1 : 0][klass];
    return (h.hits + prior(klass) * kPriorStrength) / (h.trials + kPriorStrength);
  }
  void update(std::uint8_t klass, bool sampled, bool hit) {
    Hits& h = hits_[sampled ? 1 : 0][klass];
    if (h.trials >= kMemory) {
      h.hits *= 1.0f - 1.0f / kMemory;
      h.trials *= 1.0f - 1.0f / kMemory;
    }
    h.hits += hit ? 1.0f : 0.0f;
    h.trials += 1.0f;
  }

 private:
  struct Hits {
    float hits = 0, trials = 0;
  };
  // Before any was seen: an own-context match comes true more often the longer it is; a traffic
  // continuation as often as it did before, less for what one or two sightings prove.
  static float prior(std::uint8_t klass) {
    constexpr std::array<float, kOwnClasses> kOwn = {0.12f, 0.25f, 0.4f, 0.5f, 0.65f};
    if (klass < kOwnClasses) return kOwn[klass];
    constexpr std::array<float, kProbabilityBuckets> kProbability = {0.1f, 0.3f, 0.5f, 0.8f, 0.95f};
    constexpr std::array<float, kCountBuckets> kShrink = {0.35f, 0.5f, 0.7f, 0.85f};
    const auto rest = static_cast<std::size_t>(klass - kOwnClasses);
    return kProbability[rest / kCountBuckets % kProbabilityBuckets] * kShrink[rest % kCountBuckets];
  }
  static constexpr float kPriorStrength = 4;
  // As the estimator's cells: forgotten within a few hundred sightings.
  static constexpr float kMemory = 512;
  std::array<std::array<Hits, kFusionClasses>, 2> hits_{};  // [sampled][class]
};

}  // namespace foretoken
