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

namespace foretoken {

class PageChain;
struct LearnedWeights;

// As the request asked; defaults are "off".
struct SamplingParams {
  float temperature = 1.0f;
  std::int32_t top_k = 0;  // 0: off
  float top_p = 1.0f;
  float min_p = 0.0f;
  float presence_penalty = 0, frequency_penalty = 0, repetition_penalty = 1;
  std::vector<std::pair<TokenId, float>> logit_bias;
  std::uint64_t seed = 0;  // always set by admission
};

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

struct Draft {
  std::vector<TokenId> tokens;
  std::vector<float> confidences;     // P(accepted | everything before it was), one a token
  std::vector<SpeculatorKind> kinds;  // one a token
  std::vector<float> raw;  // the speculator's own confidence before calibration, one a token
  // --spec-sampling rejection only: the sparse distribution each token was drawn from, with noise
  // of its own (empty: a point mass, the token did not depend on the request's noise). One a token,
  // or none at all.
  std::vector<std::vector<std::pair<TokenId, float>>> support;
  void clear() {
    tokens.clear();
    confidences.clear();
    kinds.clear();
    raw.clear();
    support.clear();
  }
  void push(TokenId token, float confidence, SpeculatorKind kind, float raw_confidence) {
    tokens.push_back(token);
    confidences.push_back(confidence);
    kinds.push_back(kind);
    raw.push_back(raw_confidence);
  }
  void reserve(std::size_t n) {
    tokens.reserve(n);
    confidences.reserve(n);
    kinds.reserve(n);
    raw.reserve(n);
  }
  void truncate(std::size_t n) {
    if (n >= tokens.size()) return;
    tokens.resize(n);
    confidences.resize(n);
    kinds.resize(n);
    if (raw.size() > n) raw.resize(n);
    if (support.size() > n) support.resize(n);
  }
};

struct DraftJob {
  DraftContext context;
  int max_tokens = 0;  // 0: nothing wanted
  // The cheap speculators stop where the chance that the whole draft is accepted falls below this:
  // at any price of a row above a hundredth of a round the controller would cut it there. 0: never.
  float min_survival = 0.01f;
  Draft draft;  // out
};

// What became of a round, for learning confidences. `tokens` are the sequence's tokens before the
// round.
struct DraftOutcome {
  DraftContext context;
  const Draft* draft = nullptr;
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
