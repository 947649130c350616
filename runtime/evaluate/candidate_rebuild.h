// The n-gram candidates of recorded requests looked up anew, as a server with other stores, or with
// a store of another age, would have had them: for experiments on the stores, and to score held-out
// requests at a point inside a recording (what was logged saw the store of the recording's end).
// Exact for a recording of one request at a time: a store advances by whole finished requests.
// Verdicts are never based on it. One thread.
#pragma once

#include <cstddef>
#include <map>
#include <string>

#include "foretoken/protocol/trace_record.h"
#include "runtime/speculate/traffic_store.h"

namespace foretoken {

class CandidateRebuild {
 public:
  enum class Stores {
    kShared,    // one for all traffic, as a server has it
    kByDomain,  // one a domain
  };
  CandidateRebuild(Stores stores, std::size_t store_bytes)
      : by_domain_(stores == Stores::kByDomain), store_bytes_(store_bytes) {}

  // Replaces the candidates of every generated token; the stores stay as they are.
  void look_up(RequestTrace& trace);
  // The request has finished.
  void add(const RequestTrace& trace) { store_of(trace).add(trace.tokens); }

 private:
  TrafficStore& store_of(const RequestTrace& trace);
  const bool by_domain_;
  const std::size_t store_bytes_;
  std::map<std::string, TrafficStore> stores_;
};

}  // namespace foretoken
