// One completion request from its checked body to its last byte: submits its choices to the engine,
// turns events into chunks or one response, cancels on stop strings and when the client leaves.
// Lives on its exchange's executor (one thread at a time) and is kept alive by the engine's sinks
// and the exchange.
#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "runtime/observe/request_metrics.h"
#include "runtime/serve/backend.h"
#include "runtime/serve/completion_json.h"
#include "runtime/serve/completion_request.h"
#include "runtime/serve/http_types.h"

namespace foretoken {

// A checked request whose prompts are tokens and whose seed is drawn.
struct PreparedRequest {
  CompletionRequest request;
  std::vector<std::vector<TokenId>> prompts;
  std::vector<std::int64_t> max_tokens;  // one a prompt
  std::uint64_t seed = 0;
  std::string domain, key_id;
  std::chrono::steady_clock::time_point arrived;
};

// Tokenises, bounds max_tokens, draws a missing seed (below 2^53, so that every client can send it
// back).
std::variant<PreparedRequest, ApiError> prepare(const Backend& backend, CompletionRequest request);

class CompletionJob : public std::enable_shared_from_this<CompletionJob> {
 public:
  CompletionJob(std::shared_ptr<const Backend> backend, RequestMetrics& metrics,
                std::shared_ptr<Exchange> exchange, PreparedRequest prepared);
  void start();  // on the exchange's executor

 private:
  struct Choice {
    RequestId id;
    int prompt = 0;
    ChoiceText text;
    std::string shown;  // whole text, when not streaming
    std::vector<ShownLogprob> logprobs;
    bool submitted = false, ended = false, role_sent = false, counted_first = false;
    std::string finish_reason;
    boost::json::value stop_reason;
    RequestTimings timings;
    std::chrono::steady_clock::time_point last_output;
  };
  void submit_all();
  void on_event(std::size_t index, EngineEvent event);
  void emit(std::size_t index, ChoiceText::Output output);
  void end_choice(std::size_t index, const char* reason, boost::json::value stop_reason);
  boost::json::object chunk_choice(const Choice& choice, std::size_t index,
                                   boost::json::object delta_or_text,
                                   boost::json::value logprobs) const;
  void send_chunk(boost::json::object choice, bool with_totals);
  void complete();
  void fail(ApiError error);
  void abandon();  // the client has gone
  void cancel_all();
  AnswerTotals totals() const;
  void record(const std::string& reason);

  const std::shared_ptr<const Backend> backend_;
  RequestMetrics& metrics_;
  std::shared_ptr<Exchange> exchange_;
  PreparedRequest prepared_;
  AnswerIdentity identity_;
  std::vector<Choice> choices_;
  std::size_t open_choices_ = 0;
  bool head_sent_ = false, done_ = false;
};

}  // namespace foretoken
