// The OpenAI forms of an answer: whole responses, stream chunks, usage, log-probabilities;
// llama.cpp's `timings`; and foretoken's own object.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/engine/request.h"
#include "runtime/serve/choice_text.h"

namespace foretoken {

struct AnswerIdentity {
  std::string id, model, system_fingerprint;
  std::int64_t created_unix_s = 0;
  bool chat = false;
};

// Sums over a request's choices, once the last has ended.
struct AnswerTotals {
  std::int64_t prompt_tokens = 0, completion_tokens = 0;
  std::int64_t cached_tokens = 0;  // of prompt_tokens
  RequestTimings timings;  // counts summed; prompt_ms and predicted_ms of the longest choice
  std::uint64_t seed = 0;
};

boost::json::object usage_json(const AnswerTotals& totals);
// As the members "timings" and "foretoken".
void add_timings(boost::json::object& answer, const AnswerTotals& totals);
boost::json::value logprobs_json(const Tokenizer& tokenizer,
                                 const std::vector<ShownLogprob>& logprobs, bool chat);

// A choice of a stream chunk; finish_reason null while it runs.
boost::json::object envelope(const AnswerIdentity& identity, bool chunk);
std::string server_sent_event(const boost::json::object& payload);  // "data: {...}\n\n"

}  // namespace foretoken
