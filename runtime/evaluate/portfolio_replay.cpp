#include "runtime/evaluate/portfolio_replay.h"

#include <algorithm>

namespace foretoken {

// The n-gram and fusion part; fusion, where it has candidates, stands for both.
struct PortfolioReplay::Impl {
  Kinds kinds;
  const LearnedWeights* learned;

  Proposal propose(const RequestTrace& trace, std::size_t generated) const {
    CandidateList list;
    for (const Candidate& candidate : trace.generated[generated].candidates) {
      // A trace from elsewhere may hold anything: what no table has a bias for is left out.
      if (list.n < kMaxCandidates && candidate.klass < kFusionClasses) list.push(candidate);
    }
    if (!kinds.fusion) return kinds.ngram ? propose_ngram(list) : Proposal{};
    SamplingParams sampling;
    sampling.temperature = trace.sampling.temperature;
    sampling.seed = trace.sampling.seed;
    return propose_fusion(list, learned->fusion, sampling,
                          std::int64_t(trace.n_prompt) + std::int64_t(generated));
  }

  // One round of at most max_draft tokens from generated[at] on; returns how many it emits.
  std::size_t round(const RequestTrace& trace, std::size_t at, std::int64_t max_draft,
                    const RoundCosts* costs, bool while_it_pays, PortfolioWalk* walk) const {
    std::int32_t drafted = 0, accepted = 0;
    float survival = 1;
    // The last token of a request is never drafted: it comes with the one before.
    for (std::size_t i = at; drafted < max_draft && i + 1 < trace.generated.size(); ++i) {
      const Proposal proposal = propose(trace, i);
      if (proposal.empty()) break;
      survival *= kinds.fusion ? proposal.raw : 0.5f;
      if (while_it_pays &&
          survival * costs->round(1) < costs->round(2 + drafted) - costs->round(1 + drafted))
        break;
      const bool right = proposal.token == trace.tokens[std::size_t(trace.n_prompt) + i];
      if (accepted == drafted && right) ++accepted;
      ++drafted;
    }
    walk->starts.push_back(trace.n_prompt + std::int32_t(at));
    walk->accepted.push_back(accepted);
    walk->drafted.push_back(drafted);
    ++walk->stats.rounds;
    walk->stats.drafting_rounds += drafted > 0;
    walk->stats.drafted += drafted;
    walk->stats.accepted += accepted;
    walk->stats.emitted += accepted + 1;
    if (costs) walk->predicted_ms += costs->draft_round(drafted, 0);
    return std::size_t(accepted) + 1;
  }

  PortfolioWalk walk(const RequestTrace& trace, std::int64_t max_draft, const RoundCosts* costs,
                     bool while_it_pays) const {
    PortfolioWalk walk;
    for (std::size_t at = 1; at < trace.generated.size();)
      at += round(trace, at, max_draft, costs, while_it_pays, &walk);
    return walk;
  }
};

PortfolioReplay::PortfolioReplay(Kinds kinds, const LearnedWeights* learned)
    : impl_(std::make_unique<Impl>(Impl{kinds, learned})) {}
PortfolioReplay::~PortfolioReplay() = default;

PortfolioWalk PortfolioReplay::walk_fixed(const RequestTrace& trace, int draft_length,
                                          const RoundCosts* costs) {
  return impl_->walk(trace, draft_length, costs, false);
}

PortfolioWalk PortfolioReplay::walk_costed(const RequestTrace& trace, int max_draft,
                                           const RoundCosts& costs) {
  return impl_->walk(trace, max_draft, &costs, true);
}

PortfolioWalk PortfolioReplay::walk_logged(const RequestTrace& trace, const RoundCosts* costs) {
  PortfolioWalk walk;
  for (const RoundTrace& round : trace.rounds) {
    const std::int64_t at = round.start - trace.n_prompt;
    if (at < 0 || at >= std::ssize(trace.generated)) continue;
    impl_->round(trace, std::size_t(at), std::ssize(round.drafted), costs, false, &walk);
  }
  return walk;
}

}  // namespace foretoken
