#include "runtime/replay/ask.h"

#include <fmt/format.h>

#include <chrono>

#include "runtime/json/json_at.h"

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

// What an error body says, shortened.
std::string error_message(const json::value& value) {
  if (json_at(value, "/error").is_object())
    return std::string(string_at(value, "/error/message").substr(0, 300));
  return json::serialize(value).substr(0, 300);
}

void read_figures(const json::value& chunk, RequestOutcome& outcome) {
  const auto read = [&](std::string_view at, auto& to) {
    if (const auto n = number_at(chunk, at)) to = static_cast<std::decay_t<decltype(to)>>(*n);
  };
  read("/usage/prompt_tokens", outcome.prompt_tokens);
  read("/usage/completion_tokens", outcome.completion_tokens);
  read("/timings/draft_n", outcome.draft_n);
  read("/timings/draft_n_accepted", outcome.draft_n_accepted);
  read("/timings/predicted_ms", outcome.predicted_ms);
  read("/foretoken/rounds", outcome.rounds);
  read("/foretoken/drafting_rounds", outcome.drafting_rounds);
  read("/foretoken/speculator_version", outcome.speculator_version);
  json::error_code ec;
  const auto seed = json_at(chunk, "/foretoken/seed").to_number<std::uint64_t>(ec);
  if (!ec) outcome.seed = seed;  // whole: not by way of a double
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
    if (value.get_object().contains("error")) {
      outcome.error = error_message(value);
      return;
    }
    read_figures(value, outcome);
    const json::array* choices = json_at(value, "/choices").if_array();
    for (std::size_t i = 0; choices && i < choices->size(); ++i) {
      const json::value& choice = (*choices)[i];
      const bool chat = json_at(choice, "/delta").is_object();
      const std::string_view text = string_at(choice, chat ? "/delta/content" : "/text");
      if (const auto reason = string_at(choice, "/finish_reason"); !reason.empty())
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
