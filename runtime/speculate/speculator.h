// One interface for everything that proposes tokens: given committed state, propose tokens with
// calibrated confidences. Called by the engine thread alone. A speculator never changes what is
// emitted, only how fast.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "foretoken/protocol/ids.h"
#include "foretoken/protocol/trace_record.h"
#include "runtime/model/sampling_params.h"
#include "runtime/speculate/draft_tree.h"

namespace foretoken {

class PageChain;
struct LearnedWeights;

// What a speculator may see of a sequence: its tokens so far (all committed) and how it samples.
struct DraftContext {
  RequestId request;
  int slot = 0;                     // engine slot, < max_num_seqs: key for per-sequence state
  std::span<const TokenId> tokens;  // prompt and output, the last one not yet in the target's KV
  const SamplingParams* sampling = nullptr;
  int store = 0;           // which traffic store (per API key, see TrafficStores)
  bool rejection = false;  // --spec-sampling rejection: do not draft with the request's noise
  // Which learned weights draft for this sequence: the served version's or a canary's. The engine
  // always names some; null means as shipped.
  const LearnedWeights* learned = nullptr;
  std::span<const TokenId> stop_tokens;  // end of generation: a draft ends with one of these
  const PageChain* chain = nullptr;      // names of its pages, for a cache of the speculator's own
  std::int64_t n_prompt = 0;
};

struct DraftJob {
  DraftContext context;
  int max_tokens = 0;  // 0: nothing wanted
  DraftTree draft;         // out
};

// What became of a round, for learning confidences. `tokens` are the sequence's tokens before the
// round.
struct DraftOutcome {
  DraftContext context;
  const DraftTree* draft = nullptr;
  int accepted = 0;
  std::span<const TokenId> emitted;  // accepted + 1 tokens (fewer at an end)
};

class Speculator {
 public:
  virtual ~Speculator() = default;
  virtual SpeculatorKind kind() const = 0;
  virtual void open(const DraftContext& context) = 0;  // a sequence starts (its prompt is known) or
                                                       // returns after preemption
  // It ended; whole: by itself, so that what was computed of it may serve others.
  virtual void close(const DraftContext& context, bool whole) = 0;
  virtual void propose(std::span<DraftJob> jobs) = 0;     // fills every job's draft
  virtual void observe(const DraftOutcome& outcome) = 0;  // after commit
};

}  // namespace foretoken
