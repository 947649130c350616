// A fusion table as a weight bundle of kind "fusion": "fusion.bias" [kFusionClasses],
// "fusion.other" [1]; bundles of a head have the same two. Shared by the server, which checks what
// it is sent, and the trainer, which sends it.
#pragma once

#include "foretoken/protocol/bundle.h"
#include "foretoken/protocol/failure.h"
#include "runtime/speculate/fusion_table.h"

namespace foretoken {

// Errors "kind: ...", "shape: ..." and "non-finite: ...".
Result<FusionTable> fusion_table_of(const Bundle& bundle);
Bundle bundle_of(const FusionTable& table);  // tensors and kind only

inline constexpr Refusal bad_bundle{"bundle"};

// A tensor of a bundle, of one of these types and this shape. Errors "shape: ...".
Result<const BundleTensor*> tensor_of(const Bundle& bundle, const char* name,
                                      std::initializer_list<TensorType> types,
                                      const std::vector<std::int64_t>& shape);

}  // namespace foretoken
