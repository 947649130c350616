#include "runtime/speculate/fusion_table.h"

#include <cmath>

#include "runtime/speculate/candidates.h"

namespace foretoken {

FusionTable FusionTable::initial() {
  FusionTable table;
  // "Something else" against one candidate alone: e^2 / (e^2 + e^b). An own-context match of 1, 2,
  // 3, 4, 5+ tokens then has q = .27 .40 .55 .65 .80, about the share of such matches that come
  // true in prose.
  table.other = 2.0f;
  constexpr std::array<float, kOwnClasses> kOwn = {1.0f, 1.6f, 2.2f, 2.6f, 3.4f};
  for (std::size_t i = 0; i < kOwn.size(); ++i) table.bias[i] = kOwn[i];
  // Traffic: a context of four seen before implies its endings of three and two were, so what an
  // order adds is its surplus over the shorter ones; three orders that agree on p = 1 from many
  // counts have q = .9, from a single sighting each .5.
  constexpr std::array<float, kProbabilityBuckets> kProbability = {0.3f, 0.8f, 1.3f, 1.9f, 2.4f};
  constexpr std::array<float, kCountBuckets> kCount = {0.6f, 0.8f, 1.0f, 1.15f};
  constexpr std::array<float, 3> kOrder = {0.45f, 0.45f, 0.6f};
  for (std::size_t order = 0; order < kOrder.size(); ++order) {
    for (std::size_t p = 0; p < kProbability.size(); ++p) {
      for (std::size_t c = 0; c < kCount.size(); ++c) {
        const std::size_t fusion_class =
            kOwnClasses + (order * kProbabilityBuckets + p) * kCountBuckets + c;
        table.bias[fusion_class] = kOrder[order] * kProbability[p] * kCount[c];
      }
    }
  }
  return table;
}

bool FusionTable::finite() const {
  for (float b : bias) {
    if (!std::isfinite(b)) return false;
  }
  return std::isfinite(other);
}

}  // namespace foretoken
