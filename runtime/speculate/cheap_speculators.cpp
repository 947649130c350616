#include "runtime/speculate/cheap_speculators.h"

#include <algorithm>

namespace foretoken {

CheapChoice choose_cheap(DraftSources& sources, CheapKinds kinds, const DraftContext& context,
                         std::span<const TokenId> drafted) {
  if (kinds.ngram && context.learned && context.learned->initial) kinds.fusion = false;
  const Proposal ngram = kinds.ngram ? sources.ngram(context, drafted) : Proposal();
  const Proposal fusion = kinds.fusion ? sources.fusion(context, drafted) : Proposal();
  const int depth = static_cast<int>(drafted.size());
  return choose_cheap(ngram, fusion, [&](Claim claim, float raw) {
    return sources.calibrate(claim, context, raw, depth);
  });
}

// Until it has nothing, the draft is long enough, unlikely or at an end.
void extend_cheap(DraftSources& sources, CheapKinds kinds, DraftJob& job, float survival) {
  const auto& stops = job.context.stop_tokens;
  const auto ended = [&] {
    return !job.draft.tokens.empty() &&
           std::find(stops.begin(), stops.end(), job.draft.tokens.back()) != stops.end();
  };
  while (static_cast<int>(job.draft.tokens.size()) < job.max_tokens && !ended()) {
    const CheapChoice choice =
        choose_cheap(sources, kinds, job.context, std::span<const TokenId>(job.draft.tokens));
    const Proposal& proposal = choice.proposal;
    if (proposal.empty()) break;
    survival *= choice.confidence;
    if (survival < job.min_survival) break;
    job.draft.push(proposal.token, choice.confidence, choice.kind, proposal.raw);
  }
}

namespace {

void propose(DraftSources& sources, CheapKinds kinds, std::span<DraftJob> jobs) {
  for (DraftJob& job : jobs) {
    job.draft.clear();
    extend_cheap(sources, kinds, job, 1.0f);
  }
}

}  // namespace

void NgramSpeculator::propose(std::span<DraftJob> jobs) {
  foretoken::propose(sources_, {.ngram = true}, jobs);
}

void FusionSpeculator::propose(std::span<DraftJob> jobs) {
  foretoken::propose(sources_, {.fusion = true}, jobs);
}

void propose_best(DraftSources& sources, std::span<DraftJob> jobs) {
  propose(sources, {.ngram = true, .fusion = true}, jobs);
}

}  // namespace foretoken
