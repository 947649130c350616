// A recurrent head as tensors of a weight bundle of kind "head", beside the fusion table's. Names,
// types and shapes are in PROTOCOL.md. The server checks what it is sent with the same functions
// the trainer writes with.
#pragma once

#include "foretoken/protocol/bundle.h"
#include "runtime/speculate/head/recurrent_head.h"

namespace foretoken {

// Errors "kind: ...", "shape: ..." and "non-finite: ...". Shapes are checked against each other;
// against the model, by RecurrentHead::create().
Result<HeadParts> head_parts_of(const Bundle& bundle);
// Makes `bundle` (a fusion table's) one of kind "head".
void add_head(Bundle& bundle, const HeadParts& parts);

}  // namespace foretoken
