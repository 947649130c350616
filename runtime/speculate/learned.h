// What was learned and serves: the fusion table (tier 0), and the head where the bundle has one
// (tier 1, any of head/registry.h), under one version. Immutable, shared: the engine holds the
// served weights and a canary's, and tells every sequence which of them draft for it.
#pragma once

#include <memory>

#include "foretoken/protocol/bundle.h"
#include "foretoken/protocol/ids.h"
#include "runtime/model/vocabulary_rows.h"
#include "runtime/speculate/fusion_table.h"
#include "runtime/speculate/head/draft_head.h"

namespace foretoken {

struct LearnedWeights {
  SpeculatorVersion version;
  // What ships, before anything was learned: the table of initial(). It drafts where the fusion was
  // asked for by itself; beside the fixed rule of ngram it stays silent, so that all that `auto`
  // gains by tier 0 was learned and has passed the gate.
  bool initial = false;
  FusionTable fusion = FusionTable::initial();
  std::shared_ptr<const DraftHead> head;  // may be null
};

using LearnedPointer = std::shared_ptr<const LearnedWeights>;

// Version 0: the initial table, marked as such, no head.
LearnedPointer initial_weights();

// Kind "fusion", or that of a row of head/registry.h. Errors begin with the reason: "kind: ",
// "shape: ", "taps: ", "non-finite: " and those of eagle3_checkpoint.h. rows may be null for kind
// "fusion". Packs the head's weights: not for the engine thread.
Result<LearnedPointer> learned_from_bundle(const Bundle& bundle,
                                           const std::shared_ptr<const VocabularyRows>& rows);

// Whether a request is the canary's: sticky, a hash of the request id alone for one canary version.
bool is_canary(RequestId request, SpeculatorVersion canary, double fraction);

// Which weights draft: those that serve, and a canary (may be null) for a share of the requests,
// the same ones as long as it is the canary, whatever else is swapped.
struct SpeculatorChoice {
  LearnedPointer served, canary;
  double canary_fraction = 0;

  const LearnedPointer& of(RequestId request) const {
    return canary && is_canary(request, canary->version, canary_fraction) ? canary : served;
  }
};

}  // namespace foretoken
