// `ngram`: the fixed rule over the n-gram candidates (proposal.h).
#include "runtime/speculate/registry.h"
#include "runtime/speculate/speculator.h"

namespace foretoken {
namespace {

class NgramSpeculator final : public Speculator {
 public:
  Proposal propose(const DraftPosition& position) override {
    return propose_ngram(position.candidates);
  }
};

}  // namespace

std::unique_ptr<Speculator> make_ngram(const DraftSourcesOptions&) {
  return std::make_unique<NgramSpeculator>();
}

}  // namespace foretoken
