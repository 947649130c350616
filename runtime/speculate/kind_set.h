// The position-by-position speculators that may draft, one object each in the order of the
// registry's rows, as DraftSources and a replay of the log both ask them. Not thread-safe.
#pragma once

#include <cassert>
#include <memory>
#include <vector>

#include "runtime/speculate/registry.h"
#include "runtime/speculate/speculator.h"

namespace foretoken {

class KindSet {
 public:
  KindSet(SpecType kinds, const DraftSourcesOptions& options) {
    for (const SpeculatorRow& row : kSpeculators)
      if (row.make && kinds.has(row.kind)) kinds_.push_back({row.kind, row.make(options)});
    assert(kinds_.size() <= kMostKinds);
  }
  void open(const DraftContext& context) {
    for (const Kind& kind : kinds_) kind.speculator->open(context);
  }
  // What those of `kinds` say of a position, not calibrated.
  ProposalList propose(const DraftPosition& position, SpecType kinds) const {
    ProposalList said;
    for (const Kind& kind : kinds_)
      if (const Proposal p = kinds.has(kind.kind) ? kind.speculator->propose(position) : Proposal();
          !p.empty())
        said.push_back(p);
    return said;
  }
  void commit(int slot, std::span<const TokenId> tokens) {
    for (const Kind& kind : kinds_)
      for (const TokenId token : tokens) kind.speculator->commit(slot, token);
  }

 private:
  struct Kind {
    SpeculatorKind kind;
    std::unique_ptr<Speculator> speculator;
  };
  std::vector<Kind> kinds_;
};

}  // namespace foretoken
