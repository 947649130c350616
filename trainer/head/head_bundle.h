// A head's parts as tensors of a bundle of kind "head" (names and shapes: PROTOCOL.md). No torch.
#pragma once

#include "foretoken/protocol/bundle.h"
#include "runtime/speculate/head/recurrent_head.h"

namespace foretoken::trainer {

// To a bundle that has the fusion table.
void add_head(HeadParts parts, Bundle& bundle);
// Back, byte for byte. Shapes are RecurrentHead::create's to check. Errors: "shape: ...".
Result<HeadParts> head_of(const Bundle& bundle);

}  // namespace foretoken::trainer
