// A fusion table as a weight bundle of kind "fusion": "fusion.bias" [kFusionClasses],
// "fusion.other" [1]; bundles of kind "head" have the same two. Shared by the server, which checks
// what it is sent, and the trainer, which sends it.
#pragma once

#include "foretoken/protocol/bundle.h"
#include "runtime/speculate/fusion_table.h"

namespace foretoken {

// Errors "kind: ...", "shape: ..." and "non-finite: ...".
Result<FusionTable> fusion_table_of(const Bundle& bundle);
Bundle bundle_of(const FusionTable& table);  // tensors and kind only

}  // namespace foretoken
