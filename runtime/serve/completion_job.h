// One completion request from its checked body to its last byte: submits its choices to the engine,
// turns events into chunks or one response, cancels on stop strings and when the client leaves.
// Lives on its exchange's executor (one thread at a time) and is kept alive by the engine's sinks
// and the exchange. What the engine says it leaves in an inbox a choice, whose room was made when
// the choice was submitted, and wakes the executor: nothing is allocated on the engine's thread.
#pragma once

#include <chrono>
#include <memory>
#include <mutex>
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
};

// Tokenises, bounds max_tokens, draws a missing seed (below 2^53, so that every client can send it
// back).
std::variant<PreparedRequest, ApiError> prepare(const Backend& backend, CompletionRequest request);

class CompletionJob final : public Wakeable, public std::enable_shared_from_this<CompletionJob> {
 public:
  // arrived: the whole request, at the service.
  CompletionJob(std::shared_ptr<const Backend> backend, RequestMetrics& metrics,
                std::shared_ptr<Exchange> exchange, PreparedRequest prepared,
                std::chrono::steady_clock::time_point arrived);
  void start();  // on the exchange's executor
  void woken() override;

 private:
  // Events of one choice, one after another.
  struct Inbox {
    std::vector<TokenId> tokens;
    std::vector<TokenLogprob> logprobs;  // parallel to tokens if asked for
    std::vector<std::uint8_t> events;    // tokens of each
    EngineEvent last;                    // the newest, without its tokens and logprobs
    bool empty() const { return events.empty(); }
    void reserve(std::size_t n_tokens, bool with_logprobs);
    void add(EngineEvent&& event);
    void clear();  // the room stays
  };
  struct Choice {
    RequestId id;
    int prompt = 0;
    ChoiceText text;
    Inbox inbox = {};   // under inbox_mutex_
    Inbox news = {};    // the inbox that is read; they change places
    std::string shown;  // whole text, when not streaming
    std::vector<ShownLogprob> logprobs;
    bool submitted = false, ended = false, role_sent = false, counted_first = false;
    std::string finish_reason;
    boost::json::value stop_reason;
    RequestTimings timings;
    std::chrono::steady_clock::time_point last_output;
  };
  void submit_all();
  void hear(std::size_t index, EngineEvent&& event);  // on the engine's thread
  void on_events(std::size_t index, const Inbox& news);
  void on_event(std::size_t index, std::span<const TokenId> tokens,
                std::span<const TokenLogprob> logprobs, const EngineEvent& event);
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
  const std::chrono::steady_clock::time_point arrived_;
  AnswerIdentity identity_;
  std::vector<Choice> choices_;  // as many from the beginning to the end
  std::mutex inbox_mutex_;
  std::size_t open_choices_ = 0;
  bool head_sent_ = false, done_ = false;
};

}  // namespace foretoken
