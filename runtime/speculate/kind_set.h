// The position-by-position speculators that may draft, one object each in the order of the
// registry's rows, as DraftSources and a replay of the log both ask them. Not thread-safe.
#pragma once

#include <memory>
#include <vector>

#include "runtime/speculate/hit_rates.h"
#include "runtime/speculate/registry.h"
#include "runtime/speculate/speculator.h"

namespace foretoken {

class KindSet {
 public:
  KindSet(SpecType kinds, const DraftSourcesOptions& options);

  void open(const DraftContext& context);
  // What those of `kinds` say of a position, not calibrated but for the rates of their classes.
  ProposalList propose(const DraftPosition& position, SpecType kinds, const HitRates& rates) const;
  void commit(int slot, std::span<const TokenId> tokens);
  void close(int slot, int store, bool learn);
  void forget(int store);

 private:
  struct Kind {
    SpeculatorKind kind;
    std::unique_ptr<Speculator> speculator;
  };
  std::vector<Kind> kinds_;
};

}  // namespace foretoken
