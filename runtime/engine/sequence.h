// One request as the engine sees it while it runs. Engine thread only.
// Invariants: tokens = prompt then output; computed <= tokens.size(); positions below `computed`
// are in the target's KV and committed; decoding() <=> computed + 1 == tokens.size() (the last
// token has no KV yet).
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "foretoken/protocol/trace_record.h"
#include "runtime/engine/request.h"
#include "runtime/kv/kv_cache.h"
#include "runtime/model/sampling_params.h"

namespace foretoken {

using SteadyTime = std::chrono::steady_clock::time_point;

struct Sequence {
  EngineRequest request;
  int slot = -1;  // engine slot while running, -1 while waiting
  KvSequence kv = -1;
  std::vector<TokenId> tokens;  // prompt, then output
  std::int64_t n_prompt = 0;
  PageChain chain;  // empty: without the prefix cache
  std::int64_t computed = 0;
  int store = 0;                            // traffic store of its key
  bool keeps_pages = true;                  // false: forgotten while under way
  std::unique_ptr<TokenCounts> counts;      // only with penalties
  std::unique_ptr<RequestTrace> trace;      // only when captured
  const LearnedWeights* learned = nullptr;  // the engine owns them; resolved again at every swap
  RequestTimings timings;
  SteadyTime submitted, admitted, decode_started;
  bool preempted = false;  // recomputing what it had: its tokens are "prompt" for prefill only
  std::optional<FinishReason> ends;  // asked for from outside: at the next round
  bool finished = false;  // dropped at the end of the round

  std::int64_t n_generated() const { return std::int64_t(tokens.size()) - n_prompt; }
  // Prefill ends here: at the prompt's end, or, where some of the answer is known already, at the
  // last token, which decodes as if nothing had happened.
  std::int64_t prefill_end() const {
    return n_generated() > 0 ? std::int64_t(tokens.size()) - 1 : n_prompt;
  }
  bool decoding() const { return computed + 1 == std::int64_t(tokens.size()) && n_generated() > 0; }
};

}  // namespace foretoken
