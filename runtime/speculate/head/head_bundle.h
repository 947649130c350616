// Heads as tensors of a weight bundle, beside the fusion table's: of kind "head" (recurrent) and of
// kind "eagle3". Names, types and shapes are in PROTOCOL.md. The server checks what it is sent with
// the same functions the trainer writes with.
#pragma once

#include "foretoken/protocol/bundle.h"
#include "runtime/speculate/head/eagle3_checkpoint.h"
#include "runtime/speculate/head/recurrent_head.h"

namespace foretoken {

// Errors "kind: ...", "shape: ..." and "non-finite: ...". Shapes are checked against each other;
// against the model, by RecurrentHead::create().
Result<HeadParts> head_parts_of(const Bundle& bundle);
// Makes `bundle` (a fusion table's) one of kind "head".
void add_head(Bundle& bundle, const HeadParts& parts);

struct Eagle3Bundle {
  Eagle3Checkpoint checkpoint;  // as it was added, byte for byte; Eagle3Head::create() checks it
  HeadTerms terms;
};
Result<Eagle3Bundle> eagle3_of(const Bundle& bundle);
void add_eagle3(Bundle& bundle, const Eagle3Checkpoint& checkpoint, const HeadTerms& terms);

}  // namespace foretoken
