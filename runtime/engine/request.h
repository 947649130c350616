// What crosses between the HTTP threads and the engine thread. JSON never gets here.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "foretoken/protocol/ids.h"
#include "foretoken/protocol/result.h"
#include "foretoken/protocol/trace_record.h"
#include "runtime/model/sampling_params.h"

namespace foretoken {

enum class FinishReason { kStop, kLength, kAborted, kError };

struct TokenLogprob {
  TokenId token = 0;
  float logprob = 0;
  std::vector<std::pair<TokenId, float>> top;  // as many as asked for
};

// Measured by the engine, monotonic clock. predicted_* cover the decode rounds (not prefill).
struct RequestTimings {
  std::int64_t cached_n = 0;  // the prompt's tokens that were found in the prefix cache
  std::int64_t prompt_n = 0;  // the others: they were computed
  std::int64_t predicted_n = 0, draft_n = 0, draft_n_accepted = 0, rounds = 0, drafting_rounds = 0;
  double queue_ms = 0, prompt_ms = 0, predicted_ms = 0;
  std::uint64_t speculator_version = 0;
};

// Tokens of one round of one choice. The last event of a request has `finish`.
struct EngineEvent {
  RequestId request;
  int choice = 0;
  BoundedVector<TokenId, kMaxDraftNodes + 1> tokens;
  std::vector<TokenLogprob> logprobs;  // parallel to tokens if asked for
  std::optional<FinishReason> finish;
  std::optional<TokenId> stop_token;  // the end-of-generation token that ended it (not in tokens)
  std::string error;                  // with kError
  RequestTimings timings;
};
// Called on the engine thread: must not block and must not throw (post to your own executor).
using EventSink = std::function<void(EngineEvent&&)>;

struct EngineRequest {
  RequestId id;    // from Engine::next_request_id()
  int choice = 0;  // n > 1 is several requests; seed already hashed with the index
  std::vector<TokenId> prompt;
  SamplingParams sampling;
  int max_tokens = 16;
  std::vector<TokenId> stop_tokens;  // end of generation; empty with ignore_eos
  int top_logprobs = -1;             // -1: none wanted
  bool speculation = true;           // "foretoken": {"speculation": false}
  bool trace = true;   // "foretoken": {"trace": false}: neither logged nor in the store
  std::string domain;  // metadata.domain, or the key's label
  std::string key_id;  // whose traffic store and prefix cache; "" = shared
  EventSink sink;
};

}  // namespace foretoken
