// How often what a kind proposed was right, by the class it gave (Proposal::by_class): its raw
// confidence. Engine thread (live) or a replay's own, which may be copied.
#pragma once

#include <array>
#include <cstdint>

#include "runtime/speculate/proposal.h"

namespace foretoken {

class HitRates {
 public:
  // The proposal as sure as its class was right.
  Proposal rated(Proposal proposal, bool sampled) const {
    if (proposal.empty() || !proposal.by_class) return proposal;
    const Hits& h = hits_[index(proposal)][sampled ? 1 : 0];
    proposal.raw = (h.hits + proposal.raw * kPriorStrength) / (h.trials + kPriorStrength);
    return proposal;
  }
  void update(const Proposal& proposal, bool sampled, bool hit) {
    if (!proposal.by_class) return;
    Hits& h = hits_[index(proposal)][sampled ? 1 : 0];
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
  static std::size_t index(const Proposal& proposal) {
    return static_cast<std::size_t>(proposal.kind) * kProposalClasses + proposal.fusion_class;
  }
  static constexpr float kPriorStrength = 4;
  // As the estimator's cells: forgotten within a few hundred sightings.
  static constexpr float kMemory = 512;
  std::array<std::array<Hits, 2>, kSpeculatorKinds * kProposalClasses> hits_{};  // [..][sampled]
};

}  // namespace foretoken
