#include "runtime/evaluate/replay_score.h"

#include <algorithm>

#include "runtime/speculate/candidates.h"
#include "runtime/speculate/proposal.h"
#include "runtime/speculate/speculator.h"

namespace foretoken {
namespace {

CandidateList list_of(const GeneratedTokenTrace& token) {
  CandidateList list;
  for (const Candidate& candidate : token.candidates) {
    // A trace from elsewhere may hold anything: what no table has a bias for is left out.
    if (list.n < kMaxCandidates && candidate.klass < kFusionClasses) list.push(candidate);
  }
  return list;
}

template <class Propose>
void replay(const RequestTrace& trace, std::vector<ReplayHit>* hits, Propose propose) {
  hits->assign(trace.generated.size(), ReplayHit::kNothing);
  for (std::size_t i = 0; i < trace.generated.size(); ++i) {
    const auto position = static_cast<std::size_t>(trace.n_prompt) + i;
    if (position >= trace.tokens.size()) return;
    const Proposal proposal =
        propose(list_of(trace.generated[i]), static_cast<std::int64_t>(position));
    if (proposal.empty()) continue;
    (*hits)[i] = proposal.token == trace.tokens[position] ? ReplayHit::kRight : ReplayHit::kWrong;
  }
}

// One round whose first token is hits[at]; returns how many tokens it emits.
std::size_t round_at(std::span<const ReplayHit> hits, std::size_t at, std::size_t length,
                     AcceptanceStats* stats) {
  std::size_t drafted = 0, accepted = 0;
  // Past the first wrong one the draft goes on, but what it would have said there is not in the
  // log: its rows are counted as drafted.
  while (drafted < length && at + drafted < hits.size() &&
         hits[at + drafted] != ReplayHit::kNothing) {
    if (drafted == accepted && hits[at + drafted] == ReplayHit::kRight) ++accepted;
    if (drafted < stats->drafted_at.size()) ++stats->drafted_at[drafted];
    if (accepted > drafted && drafted < stats->accepted_at.size()) ++stats->accepted_at[drafted];
    ++drafted;
  }
  const std::size_t emitted = std::min(accepted + 1, hits.size() - at);
  ++stats->rounds;
  stats->drafting_rounds += drafted > 0 ? 1 : 0;
  stats->drafted += static_cast<std::int64_t>(drafted);
  stats->accepted += static_cast<std::int64_t>(accepted);
  stats->emitted += static_cast<std::int64_t>(emitted);
  return emitted;
}

}  // namespace

void replay_fusion(const RequestTrace& trace, const FusionTable& table, bool coupled,
                   std::vector<ReplayHit>* hits) {
  SamplingParams sampling;
  sampling.temperature = trace.sampling.temperature;
  sampling.seed = trace.sampling.seed;
  replay(trace, hits, [&](const CandidateList& list, std::int64_t position) {
    return propose_fusion(list, table, sampling, position, coupled);
  });
}

void replay_ngram(const RequestTrace& trace, std::vector<ReplayHit>* hits) {
  replay(trace, hits, [](const CandidateList& list, std::int64_t) { return propose_ngram(list); });
}

AcceptanceStats walk_fixed(std::span<const ReplayHit> hits, int draft_length) {
  AcceptanceStats stats;
  for (std::size_t at = 1; at < hits.size();) {
    // As live: the last token of a request is never drafted, it comes with the one before.
    const std::size_t length =
        std::min(static_cast<std::size_t>(std::max(0, draft_length)), hits.size() - at - 1);
    at += round_at(hits, at, length, &stats);
  }
  return stats;
}

AcceptanceStats walk_logged(const RequestTrace& trace, std::span<const ReplayHit> hits) {
  AcceptanceStats stats;
  for (const RoundTrace& round : trace.rounds) {
    const std::int64_t at = round.start - trace.n_prompt;
    if (at < 0 || at >= static_cast<std::int64_t>(hits.size())) continue;
    round_at(hits, static_cast<std::size_t>(at), round.drafted.size(), &stats);
  }
  return stats;
}

}  // namespace foretoken
