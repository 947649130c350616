// `fusion`: tier 0 of the learned head, the table of biases over the n-gram candidates (proposal.h)
// of the weights that draft for the sequence.
#include "runtime/speculate/learned.h"
#include "runtime/speculate/registry.h"
#include "runtime/speculate/speculator.h"

namespace foretoken {
namespace {

class FusionSpeculator final : public Speculator {
 public:
  Proposal propose(const DraftPosition& position) override {
    const DraftContext& context = position.context;
    return propose_fusion(position.candidates, context.learned ? context.learned->fusion : initial_,
                          *context.sampling, position.index(), !context.rejection);
  }

 private:
  const FusionTable initial_ = FusionTable::initial();
};

}  // namespace

std::unique_ptr<Speculator> make_fusion(const DraftSourcesOptions&) {
  return std::make_unique<FusionSpeculator>();
}

}  // namespace foretoken
