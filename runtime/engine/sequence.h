// One request as the engine sees it while it runs. Engine thread only.
// Invariants: tokens = prompt then output; computed() <= tokens.size(), and is how far the target's
// memory of it goes; decoding() <=> computed() + 1 == tokens.size() (the last token is not in
// memory yet).
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "foretoken/protocol/trace_record.h"
#include "runtime/engine/probe.h"
#include "runtime/engine/request.h"
#include "runtime/model/sampling_params.h"
#include "runtime/model/sequence_memory.h"

namespace foretoken {

struct LearnedWeights;

// Whether this build checks the invariants of its sequences after every round.
#if !defined(NDEBUG) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kChecksSequences = true;
#else
inline constexpr bool kChecksSequences = false;
#endif

struct Sequence {
  EngineRequest request;
  int slot = -1;  // engine slot while running, -1 while waiting
  KvSequence kv = -1;
  const SequenceMemory* memory = nullptr;  // the engine's, once it ran
  std::vector<TokenId> tokens;             // prompt, then output
  std::int64_t n_prompt = 0;
  PageChain chain;                          // empty: without the prefix cache
  int store = 0;                            // traffic store of its key
  int domain = 0;                           // the probe's label
  bool keeps_pages = true;                  // false: forgotten while under way
  std::unique_ptr<TokenCounts> counts;      // only with penalties
  std::unique_ptr<RequestTrace> trace;      // only when captured
  const LearnedWeights* learned = nullptr;  // the engine owns them; resolved again at every swap
  RequestTimings timings;
  SteadyTime submitted, admitted, decode_started;
  bool preempted = false;  // recomputing what it had: its tokens are "prompt" for prefill only
  std::optional<FinishReason> ends;  // asked for from outside: at the next round
  bool finished = false;             // dropped at the end of the round

  std::int64_t computed() const { return kv < 0 ? 0 : memory->length(kv); }
  std::int64_t n_generated() const { return std::int64_t(tokens.size()) - n_prompt; }
  // Prefill ends here: at the prompt's end, or, where some of the answer is known already, at the
  // last token, which decodes as if nothing had happened.
  std::int64_t prefill_end() const {
    return n_generated() > 0 ? std::int64_t(tokens.size()) - 1 : n_prompt;
  }
  bool stops(TokenId token) const {  // an end of generation
    return std::ranges::find(request.stop_tokens, token) != request.stop_tokens.end();
  }
  bool decoding() const {
    return computed() + 1 == std::int64_t(tokens.size()) && n_generated() > 0;
  }
  // Between two rounds: which of the invariants does not hold; null: all do.
  const char* broken() const {
    const auto n = std::int64_t(tokens.size());
    if (n_prompt < 1 || n_prompt > n ||
        !std::equal(tokens.begin(), tokens.begin() + n_prompt, request.prompt.begin(),
                    request.prompt.end()))
      return "tokens = prompt then output";
    if (computed() > n) return "computed() <= tokens.size()";
    if ((slot < 0) != (kv < 0)) return "a slot goes with a KV sequence";
    if (!decoding() && computed() >= prefill_end() && n_generated() > 0)
      return "it decodes once its prefill has ended";
    if (n_generated() > request.max_tokens) return "no more output than was asked for";
    return nullptr;
  }
};

}  // namespace foretoken
