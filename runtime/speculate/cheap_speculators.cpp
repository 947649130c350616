#include "runtime/speculate/cheap_speculators.h"

#include <algorithm>

namespace foretoken {
namespace {

struct Choice {
  DraftSources::Calibrated calibrated;
  SpeculatorKind kind;
};

// choose(context, drafted) -> Choice, until it has nothing, the draft is long enough, unlikely or
// at an end.
template <class Choose>
void draft_chain(std::span<DraftJob> jobs, Choose choose) {
  for (DraftJob& job : jobs) {
    job.draft.clear();
    float survival = 1;
    const auto& stops = job.context.stop_tokens;
    while (static_cast<int>(job.draft.tokens.size()) < job.max_tokens) {
      const Choice choice = choose(job.context, std::span<const TokenId>(job.draft.tokens));
      const Proposal& proposal = choice.calibrated.proposal;
      if (proposal.empty()) break;
      survival *= choice.calibrated.confidence;
      if (survival < job.min_survival) break;
      job.draft.push(proposal.token, choice.calibrated.confidence, choice.kind, proposal.raw);
      if (std::find(stops.begin(), stops.end(), proposal.token) != stops.end()) break;
    }
  }
}

}  // namespace

void NgramSpeculator::propose(std::span<DraftJob> jobs) {
  draft_chain(jobs, [this](const DraftContext& context, std::span<const TokenId> drafted) {
    return Choice{sources_.ngram(context, drafted), SpeculatorKind::kNgram};
  });
}

void FusionSpeculator::propose(std::span<DraftJob> jobs) {
  draft_chain(jobs, [this](const DraftContext& context, std::span<const TokenId> drafted) {
    return Choice{sources_.fusion(context, drafted), SpeculatorKind::kFusion};
  });
}

void propose_best(DraftSources& sources, std::span<DraftJob> jobs) {
  draft_chain(jobs, [&sources](const DraftContext& context, std::span<const TokenId> drafted) {
    const auto ngram = sources.ngram(context, drafted);
    const auto fusion = sources.fusion(context, drafted);
    // On a tie the learned one: it has seen more candidates.
    return ngram.confidence > fusion.confidence ? Choice{ngram, SpeculatorKind::kNgram}
                                                : Choice{fusion, SpeculatorKind::kFusion};
  });
}

}  // namespace foretoken
