#include "runtime/replay/ask.h"

#include <fmt/format.h>

#include <chrono>

namespace foretoken {
namespace {

namespace json = boost::json;
using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

std::string request_body(const LoggedRequest& request, const AskOptions& options) {
  json::object body = request.body;
  body["stream"] = true;
  body["stream_options"] = json::object{{"include_usage", true}};
  if (!options.model.empty()) body["model"] = options.model;
  if (options.seed && !body.contains("seed")) body["seed"] = *options.seed;
  if (options.speculation || options.trace) {
    json::object ours;
    if (const json::value* v = body.if_contains("foretoken"); v && v->is_object())
      ours = v->get_object();
    if (options.speculation) ours["speculation"] = *options.speculation;
    if (options.trace) ours["trace"] = *options.trace;
    body["foretoken"] = std::move(ours);
  }
  return json::serialize(body);
}

const json::object* object_at(const json::object& from, std::string_view key) {
  const json::value* v = from.if_contains(key);
  return v && v->is_object() ? &v->get_object() : nullptr;
}
double number_at(const json::object& from, std::string_view key) {
  const json::value* v = from.if_contains(key);
  return v && v->is_number() ? v->to_number<double>() : 0;
}
std::int64_t count_at(const json::object& from, std::string_view key) {
  return static_cast<std::int64_t>(number_at(from, key));
}
std::string_view text_at(const json::object& from, std::string_view key) {
  const json::value* v = from.if_contains(key);
  return v && v->is_string() ? std::string_view(v->get_string()) : std::string_view{};
}

// What an error body says, shortened.
std::string error_message(const json::value& value) {
  if (const json::object* o = value.if_object())
    if (const json::object* e = object_at(*o, "error"))
      return std::string(text_at(*e, "message").substr(0, 300));
  return json::serialize(value).substr(0, 300);
}

void read_figures(const json::object& chunk, RequestOutcome& outcome) {
  if (const json::object* usage = object_at(chunk, "usage")) {
    outcome.prompt_tokens = count_at(*usage, "prompt_tokens");
    outcome.completion_tokens = count_at(*usage, "completion_tokens");
  }
  if (const json::object* timings = object_at(chunk, "timings")) {
    outcome.draft_n = count_at(*timings, "draft_n");
    outcome.draft_n_accepted = count_at(*timings, "draft_n_accepted");
    outcome.predicted_ms = number_at(*timings, "predicted_ms");
  }
  if (const json::object* ours = object_at(chunk, "foretoken")) {
    outcome.rounds = count_at(*ours, "rounds");
    outcome.drafting_rounds = count_at(*ours, "drafting_rounds");
    outcome.speculator_version = static_cast<std::uint64_t>(count_at(*ours, "speculator_version"));
    if (const json::value* seed = ours->if_contains("seed")) {
      json::error_code ec;
      const auto n = seed->to_number<std::uint64_t>(ec);
      if (!ec) outcome.seed = n;
    }
  }
}

}  // namespace

void ask(HttpClient& client, const LoggedRequest& request, const AskOptions& options,
         RequestOutcome& outcome) {
  const std::string body = request_body(request, options);
  EventReader events;
  bool done = false;
  std::string plain;  // an answer that is no stream: an error, or a server that does not stream
  std::optional<double> last_piece_ms;
  const auto start = Clock::now();
  const auto on_event = [&](std::string_view data) {
    if (data == "[DONE]") {
      done = true;
      return;
    }
    json::error_code ec;
    const json::value value = json::parse(data, ec);
    if (ec || !value.is_object()) {
      outcome.error = "an event of the stream is not a JSON object";
      return;
    }
    const json::object& chunk = value.get_object();
    if (chunk.contains("error")) {
      outcome.error = error_message(value);
      return;
    }
    read_figures(chunk, outcome);
    const json::value* choices = chunk.if_contains("choices");
    if (!choices || !choices->is_array() || choices->get_array().empty()) return;
    for (const json::value& entry : choices->get_array()) {
      const json::object* choice = entry.if_object();
      if (!choice) continue;
      const json::object* delta = object_at(*choice, "delta");
      const std::string_view text = delta ? text_at(*delta, "content") : text_at(*choice, "text");
      if (const auto reason = text_at(*choice, "finish_reason"); !reason.empty())
        outcome.finish_reason = reason;
      if (text.empty()) continue;
      const double now = ms_since(start);
      if (last_piece_ms)
        outcome.gaps_ms.push_back(now - *last_piece_ms);
      else
        outcome.ttft_ms = now;
      last_piece_ms = now;
      outcome.text += text;
    }
  };
  const auto on_data = [&](std::string_view bytes) {
    if (plain.size() < (1u << 16)) plain += bytes.substr(0, 1u << 16);
    events.push(bytes, on_event);
  };
  const auto response = client.call(request.path, &body, on_data);
  outcome.e2e_ms = ms_since(start);
  if (!last_piece_ms) outcome.ttft_ms = outcome.e2e_ms;
  if (!response) {
    outcome.error = response.error().message;
    return;
  }
  outcome.status = response->status;
  if (response->status != 200) {
    json::error_code ec;
    const json::value value = json::parse(plain, ec);
    outcome.error = ec ? fmt::format("HTTP {}", response->status) : error_message(value);
    if (outcome.error.empty()) outcome.error = fmt::format("HTTP {}", response->status);
    return;
  }
  if (outcome.error.empty() && (!done || outcome.finish_reason.empty()))
    outcome.error = done ? "the stream had no finish_reason" : "the stream ended without [DONE]";
}

}  // namespace foretoken
