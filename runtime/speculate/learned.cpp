#include "runtime/speculate/learned.h"

#include "foretoken/kernels/splitmix64.h"
#include "runtime/speculate/fusion_bundle.h"
#include "runtime/speculate/head/registry.h"

namespace foretoken {

LearnedPointer initial_weights() {
  auto weights = std::make_shared<LearnedWeights>();
  weights->initial = true;
  return weights;
}

Result<LearnedPointer> learned_from_bundle(const Bundle& bundle,
                                           const std::shared_ptr<const VocabularyRows>& rows) {
  auto table = fusion_table_of(bundle);
  if (!table) return table.error();
  auto weights = std::make_shared<LearnedWeights>();
  weights->version = bundle.version;
  weights->fusion = *table;
  if (const HeadRow* row = find_head(bundle.kind)) {
    auto head = row->make(bundle, rows);
    if (!head) return head.error();
    weights->head = std::move(*head);
  }
  return LearnedPointer(std::move(weights));
}

bool is_canary(RequestId request, SpeculatorVersion canary, double fraction) {
  const std::uint64_t both =
      request.value * kernels::kSplitMixStep + canary.value * 0xd1b54a32d192ed03u;
  return kernels::unit_interval(kernels::splitmix64(both)) < fraction;
}

}  // namespace foretoken
