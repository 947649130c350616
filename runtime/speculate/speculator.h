// What speculators are told and what they answer: a sequence's state, a draft to fill, a round's
// outcome, and the interface of those that propose position by position (kinds/). Called by the
// engine thread alone, or by a replay's. A speculator never changes what is emitted, only how fast.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "foretoken/protocol/ids.h"
#include "foretoken/protocol/trace_record.h"
#include "runtime/model/sampling_params.h"
#include "runtime/speculate/draft_tree.h"
#include "runtime/speculate/proposal.h"

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

  bool sampled() const { return sampling->temperature > 0; }
  bool ends(TokenId token) const {
    return std::ranges::find(stop_tokens, token) != stop_tokens.end();
  }
};

struct DraftJob {
  DraftContext context;
  int max_tokens = 0;  // nodes at most; 0: nothing wanted
  DraftTree draft;     // out
};

// What became of a round, for learning confidences. `tokens` are the sequence's tokens before the
// round.
struct DraftOutcome {
  DraftContext context;
  const DraftTree* draft = nullptr;
  int accepted = 0;
  std::span<const TokenId> emitted;  // accepted + 1 tokens (fewer at an end)
};

// One position that a draft may go on to.
struct DraftPosition {
  const DraftContext& context;       // of its sequence
  std::span<const TokenId> drafted;  // since the sequence's tokens
  const CandidateList& candidates;   // of the n-grams, which are looked up for every position

  std::int64_t index() const {  // of the token to come
    return std::int64_t(context.tokens.size() + drafted.size());
  }
};

// What proposes the token of a position in microseconds: a function of the position, of what was
// committed and of the traffic so far. One object a row of the registry, for all sequences. (The
// kinds that run a model of their own draft in steps, all sequences of a round together:
// ModelSpeculator and HeadSpeculator.)
class Speculator {
 public:
  virtual ~Speculator() = default;
  virtual void open(const DraftContext&) {}  // a sequence starts, or returns after preemption
  // Not calibrated; empty: nothing to say. Asked along a draft, and of every position of a round
  // that was committed, before commit() has each of its tokens.
  virtual Proposal propose(const DraftPosition& position) = 0;
  virtual void commit(int /*slot*/, TokenId) {}
};

}  // namespace foretoken
