// A head's parts as tensors of a bundle of kind "head" (names and shapes: PROTOCOL.md). No torch.
#pragma once

#include "foretoken/protocol/bundle.h"
#include "runtime/speculate/head/recurrent_head.h"

namespace foretoken::trainer {

// To a bundle that has the fusion table.
void add_head(HeadParts parts, Bundle& bundle);

}  // namespace foretoken::trainer
