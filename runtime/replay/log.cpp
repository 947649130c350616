#include "runtime/replay/log.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <iterator>
#include <limits>
#include <sstream>

#include "foretoken/kernels/splitmix64.h"
#include "runtime/json/json_at.h"

namespace foretoken {
namespace {

namespace json = boost::json;

// A log larger than this is not read into memory in one piece by mistake.
constexpr std::size_t kMaxLogBytes = std::size_t{2} << 30;
// What a synthetic prompt or answer may ask for: longer than any model's context here.
constexpr std::int64_t kMaxSyntheticTokens = 1 << 20;
// Mooncake's unit of prefix sharing.
constexpr std::int64_t kHashBlockTokens = 512;
// Keys of a log line that describe the traffic, not the request.
constexpr std::string_view kTraceKeys[] = {
    "timestamp",     "session_id", "hash_ids", "input_length", "output_length",
    "output_tokens", "delay",      "status",   "ttft_ms",      "e2e_ms"};

// Common words that byte-level vocabularies have whole, with their leading space.
constexpr std::string_view kWords[] = {
    "time", "year",   "people",  "way",    "day",      "man",    "thing",   "woman",
    "life", "child",  "world",   "school", "state",    "family", "group",   "hand",
    "part", "place",  "case",    "week",   "company",  "system", "program", "question",
    "work", "number", "night",   "point",  "home",     "water",  "room",    "mother",
    "area", "money",  "story",   "fact",   "month",    "lot",    "right",   "study",
    "book", "eye",    "job",     "word",   "business", "issue",  "side",    "kind",
    "head", "house",  "service", "friend", "father",   "power",  "hour",    "game",
    "line", "end",    "member",  "law",    "car",      "city",   "name",    "team"};

std::uint64_t mix(std::uint64_t x) { return kernels::splitmix64(x + kernels::kSplitMixStep); }

// Made-up words for logs that record lengths alone: about one token a word, the same words for the
// same seed.
std::string synthetic_text(std::uint64_t seed, std::int64_t words) {
  std::string text;
  const std::uint64_t stream = mix(seed);
  for (std::int64_t i = 0; i < words; ++i) {
    text += ' ';
    text += kWords[mix(stream + static_cast<std::uint64_t>(i)) % std::size(kWords)];
  }
  return text;
}

struct LineError {
  std::string message;
};

std::string quote(std::string_view text) {
  return fmt::format("\"{}{}\"", text.substr(0, 40), text.size() > 40 ? "..." : "");
}

std::optional<double> number(const json::object& line, std::string_view key) {
  const json::value* v = line.if_contains(key);
  if (!v || v->is_null()) return std::nullopt;
  if (!v->is_number()) throw LineError{fmt::format("{}: a number was wanted", key)};
  return v->to_number<double>();
}

std::optional<std::int64_t> length(const json::object& line, std::string_view key) {
  const auto v = number(line, key);
  if (!v) return std::nullopt;
  if (!(*v >= 0 && *v <= static_cast<double>(kMaxSyntheticTokens)))
    throw LineError{fmt::format("{}: {} is not in 0..{}", key, *v, kMaxSyntheticTokens)};
  return static_cast<std::int64_t>(*v);
}

const json::object* object(const json::object& line, std::string_view key) {
  const json::value* v = line.if_contains(key);
  if (!v || v->is_null()) return nullptr;
  if (!v->is_object()) throw LineError{fmt::format("{}: an object was wanted", key)};
  return &v->get_object();
}

const json::string& string(const json::object& line, std::string_view key) {
  const json::value* v = line.if_contains(key);
  if (!v || !v->is_string()) throw LineError{fmt::format("{}: a string was wanted", key)};
  return v->get_string();
}

json::object chat_body(std::string_view user_message) {
  json::object message{{"role", "user"}, {"content", user_message}};
  return {{"messages", json::array{std::move(message)}}};
}

void limit_answer(json::object& body, std::optional<std::int64_t> tokens) {
  if (tokens && !body.contains("max_tokens") && !body.contains("max_completion_tokens"))
    body["max_tokens"] = std::max<std::int64_t>(1, *tokens);
}

std::string mooncake_prompt(const json::object& line, std::int64_t tokens) {
  const json::value* ids = line.if_contains("hash_ids");
  if (!ids || ids->is_null()) return synthetic_text(0, tokens);
  if (!ids->is_array()) throw LineError{"hash_ids: an array was wanted"};
  std::string prompt;
  std::int64_t left = tokens;
  for (const json::value& id : ids->get_array()) {
    if (!id.is_number() || left <= 0) break;
    prompt += synthetic_text(static_cast<std::uint64_t>(id.to_number<double>()),
                             std::min(left, kHashBlockTokens));
    left -= kHashBlockTokens;
  }
  return prompt;
}

LoggedRequest parse_object(json::object line) {
  LoggedRequest request;
  request.timestamp_ms = number(line, "timestamp");
  if (request.timestamp_ms && !std::isfinite(*request.timestamp_ms))
    throw LineError{"timestamp: not finite"};
  const json::object* body = object(line, "body");
  if (!body) body = object(line, "payload");
  const auto answer_tokens =
      length(line, line.contains("output_tokens") ? "output_tokens" : "output_length");
  if (body) {
    request.body = *body;
    if (const json::value* url = line.if_contains("url")) request.path = string_at(*url, "");
  } else {
    if (line.contains("messages") || line.contains("prompt")) {
      if (!line.contains("messages")) string(line, "prompt");
      request.body = line;
      for (std::string_view key : kTraceKeys) request.body.erase(key);
    } else if (line.contains("text_input")) {
      request.body = chat_body(string(line, "text_input"));
    } else if (const auto tokens = length(line, "input_length")) {
      request.body = chat_body(mooncake_prompt(line, *tokens));
    } else {
      throw LineError{
          "none of body, payload, messages, prompt, text_input or input_length is there"};
    }
    limit_answer(request.body, answer_tokens);
  }
  if (request.path.empty())
    request.path = request.body.contains("messages") ? "/v1/chat/completions" : "/v1/completions";
  if (request.path != "/v1/chat/completions" && request.path != "/v1/completions")
    throw LineError{
        fmt::format("url: {} is not an endpoint that replay can ask", quote(request.path))};
  const bool chat = request.path == "/v1/chat/completions";
  const json::value* asked = request.body.if_contains(chat ? "messages" : "prompt");
  if (!asked || (chat ? !asked->is_array() : !(asked->is_string() || asked->is_array())))
    throw LineError{
        fmt::format("{} is missing or of the wrong type", chat ? "messages" : "prompt")};
  if (const json::value* metadata = request.body.if_contains("metadata"))
    request.domain = string_at(*metadata, "/domain");
  return request;
}

LoggedRequest parse_conversation(const json::value& entry) {
  if (!entry.is_object()) throw LineError{"an object was wanted"};
  const json::value* turns = entry.get_object().if_contains("conversations");
  if (!turns || !turns->is_array()) throw LineError{"conversations: an array was wanted"};
  LoggedRequest request;
  std::optional<std::int64_t> answer_tokens;
  bool asked = false;
  for (const json::value& turn : turns->get_array()) {
    if (!turn.is_object()) throw LineError{"conversations: objects were wanted"};
    const std::string_view from = string(turn.get_object(), "from"),
                           value = string(turn.get_object(), "value");
    if (!asked && (from == "human" || from == "user")) {
      request.body = chat_body(value);
      asked = true;
    } else if (asked) {
      answer_tokens =
          static_cast<std::int64_t>(value.size() / 4) + 1;  // about four characters a token
      break;
    }
  }
  if (!asked) throw LineError{"conversations: no turn of a human"};
  limit_answer(request.body, answer_tokens);
  request.path = "/v1/chat/completions";
  return request;
}

// "2023-11-16 18:15:46.6805900,374,44" (UTC assumed: only differences matter).
LoggedRequest parse_azure(std::string_view line, std::uint64_t number_of_line) {
  std::tm tm{};
  double seconds = 0;
  long long context = 0, generated = 0;
  if (std::sscanf(std::string(line.substr(0, 128)).c_str(), "%4d-%2d-%2d %2d:%2d:%lf,%lld,%lld",
                  &tm.tm_year, &tm.tm_mon, &tm.tm_mday, &tm.tm_hour, &tm.tm_min, &seconds, &context,
                  &generated) != 8)
    throw LineError{"wanted: date time,ContextTokens,GeneratedTokens"};
  if (context < 0 || context > kMaxSyntheticTokens || generated < 0 ||
      generated > kMaxSyntheticTokens)
    throw LineError{fmt::format("token counts {}, {} are not in 0..{}", context, generated,
                                kMaxSyntheticTokens)};
  tm.tm_year -= 1900;
  tm.tm_mon -= 1;
  LoggedRequest request;
  request.timestamp_ms = (static_cast<double>(timegm(&tm)) + seconds) * 1000;
  request.path = "/v1/chat/completions";
  request.body = chat_body(synthetic_text(number_of_line, context));
  limit_answer(request.body, generated);
  return request;
}

// Calls each(line, number) for lines that are not blank.
template <class F>
void for_lines(std::string_view text, F each) {
  std::uint64_t n = 0;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text = end == std::string_view::npos ? std::string_view{} : text.substr(end + 1);
    ++n;
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    if (line.find_first_not_of(" \t") != std::string_view::npos) each(line, n);
  }
}

json::value parse_json_text(std::string_view text) {
  json::error_code ec;
  json::value value = json::parse(text, ec);
  if (ec) throw LineError{"not JSON: " + ec.message()};
  return value;
}

}  // namespace

Result<std::vector<LoggedRequest>> parse_traffic_log(std::string_view text,
                                                     const std::string& name) {
  std::vector<LoggedRequest> requests;
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  std::uint64_t at = 0;
  const char* unit = "line";
  try {
    const std::size_t first = text.find_first_not_of(" \t\r\n");
    if (first == std::string_view::npos)
      return Error{ErrorCode::kInvalidInput, name + ": the log is empty"};
    if (text[first] == '[') {
      unit = "entry";
      const json::value entries = parse_json_text(text);
      for (const json::value& entry : entries.get_array()) {
        ++at;
        if (entry.is_object() && entry.get_object().contains("conversations"))
          requests.push_back(parse_conversation(entry));
        else if (entry.is_object())
          requests.push_back(parse_object(entry.get_object()));
        else
          throw LineError{"an object was wanted"};
      }
    } else if (text.substr(first).starts_with("TIMESTAMP,")) {
      for_lines(text.substr(first), [&](std::string_view line, std::uint64_t n) {
        at = n;
        if (n > 1) requests.push_back(parse_azure(line, n));
      });
    } else {
      for_lines(text, [&](std::string_view line, std::uint64_t n) {
        at = n;
        json::value value = parse_json_text(line);
        if (!value.is_object()) throw LineError{"an object was wanted"};
        requests.push_back(parse_object(std::move(value.get_object())));
      });
    }
  } catch (const LineError& e) {
    return Error{ErrorCode::kInvalidInput, fmt::format("{}: {} {}: {}", name, unit, at, e.message)};
  } catch (const std::exception& e) {  // of the JSON library: its border is here
    return Error{ErrorCode::kInvalidInput, fmt::format("{}: {} {}: {}", name, unit, at, e.what())};
  }
  if (requests.empty()) return Error{ErrorCode::kInvalidInput, name + ": the log has no request"};

  const auto time = [](const LoggedRequest& r) { return r.timestamp_ms.value_or(0); };
  const bool timed = std::all_of(requests.begin(), requests.end(),
                                 [](auto& r) { return r.timestamp_ms.has_value(); });
  if (timed) {
    std::stable_sort(requests.begin(), requests.end(),
                     [&](auto& a, auto& b) { return time(a) < time(b); });
    const double start = time(requests.front());
    for (LoggedRequest& r : requests) *r.timestamp_ms -= start;
  } else {
    for (LoggedRequest& r : requests) r.timestamp_ms.reset();  // half a clock is none
  }
  return requests;
}

Result<std::vector<LoggedRequest>> read_traffic_log(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return Error{ErrorCode::kNotFound, path + ": cannot open the log"};
  const auto size = static_cast<std::size_t>(std::max<std::streamoff>(0, file.tellg()));
  if (size > kMaxLogBytes)
    return Error{ErrorCode::kOutOfRange, fmt::format("{}: {} bytes, more than replay reads ({})",
                                                     path, size, kMaxLogBytes)};
  std::string text(size, '\0');
  file.seekg(0);
  if (!file.read(text.data(), static_cast<std::streamsize>(size)))
    return Error{ErrorCode::kIo, path + ": cannot read the log"};
  return parse_traffic_log(text, path);
}

}  // namespace foretoken
