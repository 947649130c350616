#include "runtime/speculate/kind_set.h"

#include <cassert>

namespace foretoken {

KindSet::KindSet(SpecType kinds, const DraftSourcesOptions& options) {
  for (const SpeculatorRow& row : kSpeculators)
    if (row.make && kinds.has(row.kind)) kinds_.push_back({row.kind, row.make(options)});
  assert(kinds_.size() <= ProposalList::kMost);
}

void KindSet::open(const DraftContext& context) {
  for (const Kind& kind : kinds_) kind.speculator->open(context);
}

ProposalList KindSet::propose(const DraftPosition& position, SpecType kinds,
                              const HitRates& rates) const {
  const bool sampled = position.context.sampling->temperature > 0;
  ProposalList said;
  for (const Kind& kind : kinds_)
    if (kinds.has(kind.kind)) said.push(rates.rated(kind.speculator->propose(position), sampled));
  return said;
}

void KindSet::commit(int slot, std::span<const TokenId> tokens) {
  for (const Kind& kind : kinds_)
    for (const TokenId token : tokens) kind.speculator->commit(slot, token);
}

void KindSet::close(int slot, int store, bool learn) {
  for (const Kind& kind : kinds_) kind.speculator->close(slot, store, learn);
}

void KindSet::forget(int store) {
  for (const Kind& kind : kinds_) kind.speculator->forget(store);
}

}  // namespace foretoken
