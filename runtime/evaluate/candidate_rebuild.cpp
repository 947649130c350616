#include "runtime/evaluate/candidate_rebuild.h"

#include "runtime/speculate/candidates.h"
#include "runtime/speculate/ngram_index.h"

namespace foretoken {

TrafficStore& CandidateRebuild::store_of(const RequestTrace& trace) {
  return stores_.try_emplace(by_domain_ ? trace.domain : std::string(), store_bytes_).first->second;
}

void CandidateRebuild::look_up(RequestTrace& trace) {
  const TrafficStore& store = store_of(trace);
  NgramIndex own;
  own.reserve(std::ssize(trace.tokens));
  own.append(std::span(trace.tokens).first(std::size_t(trace.n_prompt)));
  for (std::size_t i = 0; i < trace.generated.size(); ++i) {
    trace.generated[i].candidates = find_candidates(own, store, {});
    own.append(trace.tokens[std::size_t(trace.n_prompt) + i]);
  }
}

}  // namespace foretoken
