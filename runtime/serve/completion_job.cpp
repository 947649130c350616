#include "runtime/serve/completion_job.h"

#include <fmt/format.h>
#include <sodium.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>

#include "foretoken/protocol/signing.h"
#include "runtime/serve/choice_seed.h"

namespace foretoken {
namespace {

namespace json = boost::json;
using SteadyClock = std::chrono::steady_clock;

double seconds_since(SteadyClock::time_point then) {
  return std::chrono::duration<double>(SteadyClock::now() - then).count();
}

std::string random_id(const char* prefix) {
  std::array<std::uint8_t, 12> bytes;
  randombytes_buf(bytes.data(), bytes.size());
  return prefix + to_hex(bytes);
}

}  // namespace

std::variant<PreparedRequest, ApiError> prepare(const Backend& backend, CompletionRequest request) {
  PreparedRequest prepared;
  for (PromptInput& input : request.prompts) {
    std::vector<TokenId> tokens;
    if (auto* given = std::get_if<std::vector<TokenId>>(&input)) {
      tokens = std::move(*given);
    } else {
      std::string text;
      if (auto* messages = std::get_if<std::vector<ChatMessage>>(&input)) {
        if (!backend.chat_template)
          return ApiError::unsupported("messages",
                                       "this model has no chat template; use /v1/completions");
        auto rendered = backend.chat_template->render(*messages, request.add_generation_prompt);
        if (!rendered)
          return ApiError::invalid(
              "messages",
              "messages: the model's chat template refused them: " + rendered.error().message);
        text = std::move(*rendered);
      } else {
        text = std::move(std::get<std::string>(input));
      }
      auto encoded = backend.tokenizer->encode(text, true);
      if (!encoded)
        return ApiError::invalid(request.chat ? "messages" : "prompt", encoded.error().message);
      tokens = std::move(*encoded);
      auto bos = backend.tokenizer->bos();
      if (bos && (backend.tokenizer->add_bos() || tokens.empty()) &&
          (tokens.empty() || tokens.front() != *bos))
        tokens.insert(tokens.begin(), *bos);
    }
    if (tokens.empty())
      return ApiError::invalid(request.chat ? "messages" : "prompt",
                               "the prompt has no tokens; wanted at least one");
    std::int64_t n_prompt = static_cast<std::int64_t>(tokens.size());
    auto limit = token_limit(n_prompt, request.max_tokens, backend.n_ctx);
    if (!limit) return ApiError::context_length(limit.error().message, n_prompt, backend.n_ctx);
    prepared.max_tokens.push_back(*limit);
    prepared.prompts.push_back(std::move(tokens));
  }
  if (request.seed) {
    prepared.seed = *request.seed;
  } else {
    randombytes_buf(&prepared.seed, sizeof prepared.seed);
    prepared.seed >>= 11;
    spdlog::debug("a request without a seed: drew {}", prepared.seed);
  }
  request.prompts.clear();
  prepared.request = std::move(request);
  return prepared;
}

CompletionJob::CompletionJob(std::shared_ptr<const Backend> backend, RequestMetrics& metrics,
                             std::shared_ptr<Exchange> exchange, PreparedRequest prepared,
                             SteadyClock::time_point arrived)
    : backend_(std::move(backend)),
      metrics_(metrics),
      exchange_(std::move(exchange)),
      prepared_(std::move(prepared)),
      arrived_(arrived) {
  const CompletionRequest& request = prepared_.request;
  identity_.chat = request.chat;
  identity_.id = random_id(request.chat ? "chatcmpl-" : "cmpl-");
  identity_.model = request.model.empty() ? backend_->names.front() : request.model;
  identity_.system_fingerprint = "fp_" + backend_->fingerprint_hex.substr(0, 12);
  identity_.created_unix_s = std::chrono::duration_cast<std::chrono::seconds>(
                                 std::chrono::system_clock::now().time_since_epoch())
                                 .count();
  for (int p = 0; p < static_cast<int>(prepared_.prompts.size()); ++p)
    for (int i = 0; i < request.n; ++i)
      choices_.push_back(Choice{{}, p, ChoiceText(*backend_->tokenizer, request.stop)});
  open_choices_ = choices_.size();
}

void CompletionJob::start() {
  // A client that left already is reported at once, before anything is submitted.
  exchange_->on_disconnect([self = shared_from_this()] { self->abandon(); });
  if (!done_) submit_all();
}

void CompletionJob::submit_all() {
  const CompletionRequest& request = prepared_.request;
  for (std::size_t index = 0; index < choices_.size(); ++index) {
    Choice& choice = choices_[index];
    EngineRequest engine_request;
    choice.id = engine_request.id = backend_->engine->next_request_id();
    engine_request.choice = static_cast<int>(index) % request.n;
    engine_request.prompt = prepared_.prompts[static_cast<std::size_t>(choice.prompt)];
    engine_request.sampling = request.sampling;
    engine_request.sampling.seed = choice_seed(prepared_.seed, engine_request.choice);
    engine_request.max_tokens =
        static_cast<int>(prepared_.max_tokens[static_cast<std::size_t>(choice.prompt)]);
    engine_request.stop_tokens = request.stop_tokens;
    if (!request.ignore_eos) {
      const auto& ends = backend_->tokenizer->end_of_generation();
      engine_request.stop_tokens.insert(engine_request.stop_tokens.end(), ends.begin(), ends.end());
    }
    engine_request.top_logprobs = request.top_logprobs;
    engine_request.speculation = request.speculation;
    engine_request.trace = request.trace;
    engine_request.domain = prepared_.domain;
    engine_request.key_id = prepared_.key_id;
    for (Inbox* inbox : {&choice.inbox, &choice.news})
      inbox->reserve(static_cast<std::size_t>(engine_request.max_tokens),
                     request.top_logprobs >= 0);
    engine_request.sink = [self = shared_from_this(), index](EngineEvent&& event) {
      self->hear(index, std::move(event));
    };
    if (Status status = backend_->engine->submit(std::move(engine_request)); !status) {
      switch (status.error().code) {
        case ErrorCode::kUnavailable:
          return fail(ApiError::overloaded(status.error().message));
        case ErrorCode::kInvalidInput:
          return fail(ApiError::invalid("", status.error().message));
        case ErrorCode::kUnsupported:
          return fail(ApiError::unsupported("", status.error().message));
        default:
          return fail(ApiError::internal(status.error().message));
      }
    }
    choice.submitted = true;
  }
  if (request.stream) {
    head_sent_ = true;
    exchange_->start_stream({.content_type = "text/event-stream",
                             .headers = {{"Cache-Control", "no-cache"},
                                         {"X-Accel-Buffering", "no"},
                                         {"X-Request-Id", identity_.id}}});
  }
}

void CompletionJob::Inbox::reserve(std::size_t n_tokens, bool with_logprobs) {
  tokens.reserve(n_tokens);
  events.reserve(n_tokens + 1);  // the last may have none
  if (with_logprobs) logprobs.reserve(n_tokens);
}

void CompletionJob::Inbox::add(EngineEvent&& event) {
  tokens.insert(tokens.end(), event.tokens.begin(), event.tokens.end());
  std::move(event.logprobs.begin(), event.logprobs.end(), std::back_inserter(logprobs));
  events.push_back(static_cast<std::uint8_t>(event.tokens.size()));
  event.tokens.clear();
  event.logprobs.clear();
  last = std::move(event);
}

void CompletionJob::Inbox::clear() {
  tokens.clear();
  logprobs.clear();
  events.clear();
}

void CompletionJob::hear(std::size_t index, EngineEvent&& event) {
  {
    std::lock_guard lock(inbox_mutex_);
    choices_[index].inbox.add(std::move(event));
  }
  exchange_->wake(shared_from_this());
}

void CompletionJob::woken() {
  for (std::size_t index = 0; index < choices_.size(); ++index) {
    Choice& choice = choices_[index];
    {
      std::lock_guard lock(inbox_mutex_);
      if (choice.inbox.empty()) continue;
      std::swap(choice.inbox, choice.news);
    }
    on_events(index, choice.news);
    choice.news.clear();
  }
}

void CompletionJob::on_events(std::size_t index, const Inbox& news) {
  std::size_t at = 0;
  for (std::size_t e = 0; e < news.events.size(); ++e) {
    const std::size_t n = news.events[e];
    const bool with_logprobs = !news.logprobs.empty();
    EngineEvent event;
    event.timings = news.last.timings;
    on_event(index, std::span(news.tokens).subspan(at, n),
             std::span(news.logprobs).subspan(with_logprobs ? at : 0, with_logprobs ? n : 0),
             e + 1 == news.events.size() ? news.last : event);
    at += n;
  }
}

void CompletionJob::on_event(std::size_t index, std::span<const TokenId> tokens,
                             std::span<const TokenLogprob> logprobs, const EngineEvent& event) {
  Choice& choice = choices_[index];
  if (done_ || choice.ended) return;
  choice.timings = event.timings;
  auto now = SteadyClock::now();
  if (!tokens.empty()) {
    if (choice.counted_first)
      metrics_.token_gap(std::chrono::duration<double>(now - choice.last_output).count());
    else
      metrics_.first_token(seconds_since(arrived_));
    choice.counted_first = true;
    choice.last_output = now;
  }
  ChoiceText::Output output = choice.text.push(tokens, logprobs);
  if (!choice.text.matched_stop() && event.finish) {
    ChoiceText::Output rest = choice.text.finish();
    output.text += rest.text;
    std::move(rest.logprobs.begin(), rest.logprobs.end(), std::back_inserter(output.logprobs));
  }
  if (event.finish == FinishReason::kError)
    return fail(ApiError::internal(event.error.empty() ? "the engine failed" : event.error));
  if (event.finish == FinishReason::kAborted && !choice.text.matched_stop())
    return fail(ApiError::unavailable("the request was aborted because the server is stopping", 5));
  emit(index, std::move(output));
  if (done_) return;
  if (choice.text.matched_stop()) {
    if (!event.finish) backend_->engine->stop(choice.id);
    end_choice(index, "stop", json::value(*choice.text.matched_stop()));
  } else if (event.finish == FinishReason::kStop) {
    // As vLLM: null for the model's own end of generation, the id for one of stop_token_ids.
    const auto& asked = prepared_.request.stop_tokens;
    json::value reason = nullptr;
    if (event.stop_token && std::find(asked.begin(), asked.end(), *event.stop_token) != asked.end())
      reason = *event.stop_token;
    end_choice(index, "stop", std::move(reason));
  } else if (event.finish == FinishReason::kLength) {
    end_choice(index, "length", nullptr);
  }
}

void CompletionJob::emit(std::size_t index, ChoiceText::Output output) {
  Choice& choice = choices_[index];
  const CompletionRequest& request = prepared_.request;
  if (!request.stream) {
    choice.shown += output.text;
    std::move(output.logprobs.begin(), output.logprobs.end(), std::back_inserter(choice.logprobs));
    return;
  }
  if (request.chat && !choice.role_sent) {
    choice.role_sent = true;
    send_chunk(chunk_choice(choice, index, {{"role", "assistant"}, {"content", ""}}, nullptr),
               false);
    if (done_) return;
  }
  if (output.text.empty() && output.logprobs.empty()) return;
  json::value logprobs = nullptr;
  if (request.top_logprobs >= 0)
    logprobs = logprobs_json(*backend_->tokenizer, output.logprobs, request.chat);
  json::object content =
      request.chat ? json::object{{"content", output.text}} : json::object{{"text", output.text}};
  send_chunk(chunk_choice(choice, index, std::move(content), std::move(logprobs)), false);
}

json::object CompletionJob::chunk_choice(const Choice& choice, std::size_t index,
                                         json::object content, json::value logprobs) const {
  json::object out{{"index", index}};
  if (identity_.chat)
    out["delta"] = std::move(content);
  else
    out["text"] = std::move(content["text"]);
  out["logprobs"] = std::move(logprobs);
  if (choice.ended) {
    out["finish_reason"] = choice.finish_reason;
    out["stop_reason"] = choice.stop_reason;
  } else {
    out["finish_reason"] = nullptr;
  }
  return out;
}

void CompletionJob::send_chunk(json::object choice, bool with_totals) {
  json::object chunk = envelope(identity_, true);
  chunk["choices"] = json::array{std::move(choice)};
  if (prepared_.request.include_usage) chunk["usage"] = nullptr;
  if (with_totals) add_timings(chunk, totals());
  exchange_->send(server_sent_event(chunk));
}

void CompletionJob::end_choice(std::size_t index, const char* reason, json::value stop_reason) {
  Choice& choice = choices_[index];
  choice.ended = true;
  choice.finish_reason = reason;
  choice.stop_reason = std::move(stop_reason);
  --open_choices_;
  if (prepared_.request.stream) {
    json::object empty = identity_.chat ? json::object{} : json::object{{"text", ""}};
    send_chunk(chunk_choice(choice, index, std::move(empty), nullptr), open_choices_ == 0);
  }
  if (!done_ && open_choices_ == 0) complete();
}

void CompletionJob::complete() {
  const CompletionRequest& request = prepared_.request;
  done_ = true;
  AnswerTotals sums = totals();
  record(choices_.front().finish_reason);
  if (request.stream) {
    if (request.include_usage) {
      json::object chunk = envelope(identity_, true);
      chunk["choices"] = json::array{};
      chunk["usage"] = usage_json(sums);
      add_timings(chunk, sums);
      exchange_->send(server_sent_event(chunk));
    }
    exchange_->send("data: [DONE]\n\n");
    exchange_->finish_stream();
    return;
  }
  json::object body = envelope(identity_, false);
  json::array choices;
  for (std::size_t index = 0; index < choices_.size(); ++index) {
    const Choice& choice = choices_[index];
    json::object out{{"index", index}};
    if (request.chat)
      out["message"] = json::object{{"role", "assistant"}, {"content", choice.shown}};
    else
      out["text"] = choice.shown;
    out["logprobs"] = request.top_logprobs >= 0
                          ? logprobs_json(*backend_->tokenizer, choice.logprobs, request.chat)
                          : json::value(nullptr);
    out["finish_reason"] = choice.finish_reason;
    out["stop_reason"] = choice.stop_reason;
    choices.push_back(std::move(out));
  }
  body["choices"] = std::move(choices);
  body["usage"] = usage_json(sums);
  add_timings(body, sums);
  exchange_->respond({.headers = {{"X-Request-Id", identity_.id}}, .body = json::serialize(body)});
}

void CompletionJob::fail(ApiError error) {
  if (done_) return;
  done_ = true;
  cancel_all();
  record(error.status >= 500 ? "error" : "abort");
  if (error.status >= 500) spdlog::warn("{}: {}", identity_.id, error.message);
  if (!head_sent_) return exchange_->respond(error_response(error));
  // Mid-stream: the error as an event, no [DONE], and the connection ends.
  exchange_->send("data: " + error_json(error) + "\n\n");
  exchange_->finish_stream();
}

void CompletionJob::abandon() {
  if (done_) return;
  done_ = true;
  cancel_all();
  record("abort");
  spdlog::info("{}: the client has gone; cancelled", identity_.id);
}

void CompletionJob::cancel_all() {
  for (Choice& choice : choices_)
    if (choice.submitted && !choice.ended) backend_->engine->cancel(choice.id);
}

AnswerTotals CompletionJob::totals() const {
  AnswerTotals sums;
  sums.seed = prepared_.seed;
  for (const auto& prompt : prepared_.prompts)
    sums.prompt_tokens += static_cast<std::int64_t>(prompt.size());
  RequestTimings& t = sums.timings;
  std::vector<std::int64_t> cached_of(prepared_.prompts.size(), 0);
  for (const Choice& choice : choices_) {
    sums.completion_tokens += choice.text.n_tokens();
    // A prompt is counted once, however many choices it has.
    std::int64_t& cached = cached_of[static_cast<std::size_t>(choice.prompt)];
    cached = std::max(cached, choice.timings.cached_n);
    t.cached_n += choice.timings.cached_n;
    t.prompt_n += choice.timings.prompt_n;
    t.predicted_n += choice.timings.predicted_n;
    t.draft_n += choice.timings.draft_n;
    t.draft_n_accepted += choice.timings.draft_n_accepted;
    t.rounds += choice.timings.rounds;
    t.drafting_rounds += choice.timings.drafting_rounds;
    t.queue_ms = std::max(t.queue_ms, choice.timings.queue_ms);
    t.prompt_ms = std::max(t.prompt_ms, choice.timings.prompt_ms);
    t.predicted_ms = std::max(t.predicted_ms, choice.timings.predicted_ms);
    t.speculator_version = std::max(t.speculator_version, choice.timings.speculator_version);
  }
  for (const std::int64_t cached : cached_of) sums.cached_tokens += cached;
  return sums;
}

void CompletionJob::record(const std::string& reason) {
  AnswerTotals sums = totals();
  metrics_.finished(
      {.finished_reason = reason,
       .e2e_s = seconds_since(arrived_),
       .queue_s = sums.timings.queue_ms / 1000,
       .prefill_s = sums.timings.prompt_ms / 1000,
       .decode_s = sums.timings.predicted_ms / 1000,
       .prompt_tokens = sums.prompt_tokens,
       .generated_tokens = sums.completion_tokens,
       .max_tokens = *std::max_element(prepared_.max_tokens.begin(), prepared_.max_tokens.end()),
       .n = prepared_.request.n});
}

}  // namespace foretoken
