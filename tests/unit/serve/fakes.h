// Stand-ins that can be told to misbehave: an engine that is slow, full, failing or silent, and a
// tokenizer whose tokens are bytes. The HTTP layer above them, sockets included, is the real one.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "runtime/engine/engine.h"
#include "runtime/speculate/learned.h"
#include "runtime/text/chat_template.h"
#include "runtime/text/tokenizer.h"
#include "tests/support/count_allocations.h"

namespace foretoken {

inline constexpr TokenId kEnd = 256, kBegin = 257;

class ByteTokenizer final : public Tokenizer {
 public:
  ByteTokenizer() {
    for (int i = 0; i < 256; ++i) bytes_[static_cast<std::size_t>(i)] = static_cast<char>(i);
  }
  Result<std::vector<TokenId>> encode(std::string_view text, bool) const override {
    std::vector<TokenId> out;
    for (char c : text) out.push_back(static_cast<unsigned char>(c));
    return out;
  }
  std::string_view bytes(TokenId token, bool special) const override {
    if (token < 256) return {&bytes_[static_cast<std::size_t>(token)], 1};
    return special ? (token == kEnd ? "<end>" : "<begin>") : "";
  }
  std::string decode(std::span<const TokenId> tokens, bool special) const override {
    std::string out;
    for (TokenId token : tokens) out += bytes(token, special);
    return out;
  }
  int vocabulary_size() const override { return 258; }
  std::optional<TokenId> find(std::string_view) const override { return std::nullopt; }
  std::optional<TokenId> bos() const override { return kBegin; }
  bool add_bos() const override { return false; }
  const std::vector<TokenId>& end_of_generation() const override { return ends_; }

 private:
  std::array<char, 256> bytes_{};
  std::vector<TokenId> ends_{kEnd};
};

class PlainTemplate final : public ChatTemplate {
 public:
  Result<std::string> render(const std::vector<ChatMessage>& messages,
                             bool add_generation_prompt) const override {
    std::string out;
    for (const auto& m : messages) {
      if (m.content == "refuse me")
        return Error{ErrorCode::kInvalidInput, "the template raised: no"};
      out += m.role + ": " + m.content + "\n";
    }
    return out + (add_generation_prompt ? "assistant:" : "");
  }
};

// Emits `answer`'s bytes, `tokens_per_round` at a time, then the end token (or up to max_tokens).
class FakeEngine final : public Engine {
 public:
  FakeEngine() : thread_([this] { run(); }) {}
  ~FakeEngine() override {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    thread_.join();
  }

  std::string answer = "Hello, world";
  std::size_t tokens_per_round = 3;
  std::atomic<int> round_ms{1};
  std::size_t max_open = 100;
  std::atomic<bool> hold{false};  // no events while set: a long prefill
  std::atomic<bool> fail{false};  // the next event is an error
  std::atomic<double> heartbeat{0.01};
  std::atomic<std::int64_t> allocated_in_sinks{0};  // on the engine's thread

  RequestId next_request_id() override { return {++next_id_}; }
  Status submit(EngineRequest request) override {
    std::lock_guard lock(mutex_);
    if (open_.size() >= max_open) return Error{ErrorCode::kUnavailable, "the queue is full"};
    submitted_.push_back(request);
    submitted_.back().sink = nullptr;  // it keeps the connection alive
    auto id = request.id;
    open_.emplace(id.value, Open{std::move(request), 0});
    return Ok{};
  }
  void cancel(RequestId id) override {
    std::lock_guard lock(mutex_);
    cancelled_.insert(id.value);
  }
  void drain() override {}
  bool idle() const override {
    std::lock_guard lock(mutex_);
    return open_.empty();
  }
  void set_learned(SpeculatorChoice) override {}
  EngineStats stats() const override {
    std::lock_guard lock(mutex_);
    return stats_;
  }
  double heartbeat_age_s() const override { return heartbeat; }
  const EngineOptions& options() const override { return options_; }

  std::size_t open() const {
    std::lock_guard lock(mutex_);
    return open_.size();
  }
  std::size_t cancelled() const {
    std::lock_guard lock(mutex_);
    return cancelled_.size();
  }
  std::vector<EngineRequest> submitted() const {
    std::lock_guard lock(mutex_);
    return submitted_;
  }
  std::int64_t emitted() const { return emitted_; }
  void set_stats(EngineStats stats) {
    std::lock_guard lock(mutex_);
    stats_ = std::move(stats);
  }

 private:
  struct Open {
    EngineRequest request;
    std::size_t at;
  };
  void run() {
    for (;;) {
      std::this_thread::sleep_for(std::chrono::milliseconds(round_ms.load()));
      std::lock_guard lock(mutex_);
      if (stopping_) {
        for (auto& [id, open] : open_) finish(open, FinishReason::kAborted);
        return;
      }
      for (auto it = open_.begin(); it != open_.end();) {
        bool ended = cancelled_.count(it->first) ? finish(it->second, FinishReason::kAborted)
                                                 : !hold && step(it->second);
        it = ended ? open_.erase(it) : std::next(it);
      }
    }
  }
  bool finish(Open& open, FinishReason reason) {
    EngineEvent event = event_of(open);
    event.finish = reason;
    open.request.sink(std::move(event));
    return true;
  }
  EngineEvent event_of(const Open& open) {
    EngineEvent event;
    event.request = open.request.id;
    event.choice = open.request.choice;
    event.timings.prompt_n = static_cast<std::int64_t>(open.request.prompt.size());
    event.timings.predicted_n = static_cast<std::int64_t>(open.at);
    event.timings.rounds = event.timings.drafting_rounds =
        static_cast<std::int64_t>((open.at + tokens_per_round - 1) / tokens_per_round);
    event.timings.draft_n = event.timings.rounds * 4;
    event.timings.draft_n_accepted = static_cast<std::int64_t>(open.at) - event.timings.rounds;
    event.timings.prompt_ms = 2;
    event.timings.predicted_ms = static_cast<double>(open.at);
    return event;
  }
  bool step(Open& open) {
    EngineEvent event = event_of(open);
    if (fail) {
      event.finish = FinishReason::kError;
      event.error = "it broke";
    }
    for (std::size_t i = 0; i < tokens_per_round && !event.finish; ++i) {
      if (open.at >= static_cast<std::size_t>(open.request.max_tokens))
        event.finish = FinishReason::kLength;
      else if (open.at >= answer.size() && !open.request.stop_tokens.empty())
        event.finish = FinishReason::kStop, event.stop_token = kEnd;
      else {
        TokenId token = static_cast<unsigned char>(answer[open.at++ % answer.size()]);
        event.tokens.push_back(token);
        ++emitted_;
        if (open.request.top_logprobs >= 0) {
          TokenLogprob logprob{token, -0.5f, {}};
          for (int k = 0; k < open.request.top_logprobs; ++k)
            logprob.top.emplace_back('a' + k, -0.5f - static_cast<float>(k));
          event.logprobs.push_back(logprob);
        }
      }
    }
    auto timings = event_of(open).timings;
    event.timings = timings;
    bool ended = event.finish.has_value();
    const std::int64_t before = allocations_of_this_thread;
    open.request.sink(std::move(event));
    allocated_in_sinks += allocations_of_this_thread - before;
    return ended;
  }

  mutable std::mutex mutex_;
  std::map<std::uint64_t, Open> open_;
  std::set<std::uint64_t> cancelled_;
  std::vector<EngineRequest> submitted_;
  EngineStats stats_;
  EngineOptions options_;
  bool stopping_ = false;
  std::atomic<std::uint64_t> next_id_{0};
  std::atomic<std::int64_t> emitted_{0};
  std::thread thread_;
};

}  // namespace foretoken
