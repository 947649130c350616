#include "runtime/serve/completion_request.h"

#include <fmt/format.h>

#include <charconv>
#include <limits>

#include "runtime/serve/json_fields.h"

namespace foretoken {
namespace {

namespace json = boost::json;

constexpr std::size_t kMaxMessages = 4096;
constexpr std::size_t kMaxPrompts = 64;
constexpr std::size_t kMaxStopBytes = 1024;
constexpr std::size_t kMaxStopTokens = 64;
constexpr std::size_t kMaxBiases = 1024;
constexpr std::size_t kMaxDomainBytes = 64;
constexpr int kMaxTopLogprobs = 20;  // OpenAI's limit

// A field whose semantics other servers have and foretoken has not. `off` says which values mean
// "not used".
struct UnsupportedField {
  std::string_view name;
  bool (*off)(const json::value&);
};
bool never_off(const json::value&) { return false; }
bool falsy(const json::value& v) {
  return (v.is_bool() && !v.get_bool()) || (v.is_array() && v.get_array().empty()) ||
         (v.is_object() && v.get_object().empty()) || (v.is_string() && v.get_string().empty()) ||
         (v.is_int64() && v.get_int64() == 0) || (v.is_double() && v.get_double() == 0);
}
bool off_at_one(const json::value& v) {
  return (v.is_int64() && v.get_int64() == 1) || (v.is_double() && v.get_double() == 1) ||
         (v.is_uint64() && v.get_uint64() == 1);
}
bool truthy(const json::value& v) { return v.is_bool() && v.get_bool(); }
bool tool_choice_off(const json::value& v) {
  return v.is_string() && (v.get_string() == "none" || v.get_string() == "auto");
}
bool text_only(const json::value& v) {
  return v.is_array() && v.get_array().size() == 1 && v.get_array()[0].is_string() &&
         v.get_array()[0].get_string() == "text";
}

constexpr UnsupportedField kUnsupported[] = {
    {"tools", falsy},
    {"functions", falsy},
    {"tool_choice", tool_choice_off},
    {"function_call", tool_choice_off},
    {"audio", never_off},
    {"modalities", text_only},
    {"web_search_options", falsy},
    // structured output: failing open would return text that breaks the client's schema
    {"grammar", falsy},
    {"json_schema", falsy},
    {"guided_json", falsy},
    {"guided_regex", falsy},
    {"guided_choice", falsy},
    {"guided_grammar", falsy},
    {"structured_outputs", falsy},
    // sampling that would change the output
    {"min_tokens", falsy},
    {"use_beam_search", falsy},
    {"typical_p", off_at_one},
    {"mirostat", falsy},
    {"dynatemp_range", falsy},
    {"dry_multiplier", falsy},
    {"xtc_probability", falsy},
    {"top_n_sigma", falsy},
    {"adapter_id", falsy},
    {"lora", falsy},
    {"allowed_token_ids", falsy},
    {"bad_words", falsy},
    // the form of the output
    {"echo", falsy},
    {"suffix", falsy},
    {"include_stop_str_in_output", falsy},
    {"skip_special_tokens", truthy},
    {"return_tokens_as_token_ids", falsy},
    {"continue_final_message", falsy},
    {"prompt_logprobs", never_off},
    {"truncate_prompt_tokens", never_off},
};

// Accepted for clients' sake; they do not change what is generated here.
constexpr std::string_view kWithoutEffect[] = {"user",
                                               "store",
                                               "service_tier",
                                               "parallel_tool_calls",
                                               "prediction",
                                               "cache_prompt",
                                               "safety_identifier",
                                               "prompt_cache_key",
                                               "prompt_cache_retention",
                                               "id_slot",
                                               "timings_per_token",
                                               "return_progress",
                                               "return_tokens",
                                               "priority",
                                               "request_id",
                                               "cache_salt"};

void parse_messages(JsonFields& fields, CompletionRequest& request) {
  const json::array* messages = fields.array("messages");
  if (!messages) {
    fields.missing("messages", "an array of messages");
    return;
  }
  if (messages->empty() || messages->size() > kMaxMessages) {
    fields.wrong("messages", json::value(*messages), fmt::format("1 to {} messages", kMaxMessages));
    return;
  }
  std::vector<ChatMessage> parsed;
  for (std::size_t i = 0; i < messages->size(); ++i) {
    std::string where = fmt::format("messages[{}]", i);
    const json::value& entry = (*messages)[i];
    if (!entry.is_object()) return fields.wrong(where, entry, "an object with role and content");
    JsonFields message(entry.get_object(), where + ".", &fields);
    ChatMessage out;
    out.role = message.string("role");
    if (out.role.empty()) message.missing("role", "a string");
    if (out.role == "developer") out.role = "system";
    if (!message.error() && out.role != "system" && out.role != "user" && out.role != "assistant") {
      if (out.role == "tool" || out.role == "function")
        message.unsupported("role", ": tool messages are not supported");
      else
        message.wrong("role", json::value(out.role), "system, developer, user or assistant");
    }
    for (std::string_view name : {"tool_calls", "function_call", "audio"}) {
      const json::value* value = message.find(name);
      if (value && !falsy(*value)) message.unsupported(name);
    }
    const json::value* content = message.find("content");
    if (!content) {
      message.missing("content", "a string or an array of text parts");
    } else if (content->is_string()) {
      out.content = std::string(content->get_string());
    } else if (content->is_array()) {
      for (std::size_t p = 0; p < content->get_array().size() && !message.error(); ++p) {
        std::string part_name = fmt::format("content[{}]", p);
        const json::value& part_value = content->get_array()[p];
        if (!part_value.is_object()) {
          message.wrong(part_name, part_value, "an object {\"type\": \"text\", \"text\": ...}");
          break;
        }
        JsonFields part(part_value.get_object(), fmt::format("{}.{}.", where, part_name), &message);
        std::string type = part.string("type");
        const json::value* text = part.find("text");
        if (type != "text")
          part.unsupported("type",
                           fmt::format(": found \"{}\", only text parts are supported", type));
        else if (!text || !text->is_string())
          message.fail(
              ApiError::invalid(fmt::format("{}.{}.text", where, part_name),
                                fmt::format("{}.{}.text: wanted a string", where, part_name)));
        else
          out.content += std::string_view(text->get_string());
      }
    } else {
      message.wrong("content", *content, "a string or an array of text parts");
    }
    if (fields.error()) return;
    parsed.push_back(std::move(out));
  }
  request.prompts.emplace_back(std::move(parsed));
}

std::optional<TokenId> token_id(const json::value& value, const RequestLimits& limits) {
  if (!value.is_int64() || value.get_int64() < 0 || value.get_int64() >= limits.n_vocab)
    return std::nullopt;
  return static_cast<TokenId>(value.get_int64());
}

void parse_prompt(JsonFields& fields, const RequestLimits& limits, CompletionRequest& request) {
  const json::value* prompt = fields.find("prompt");
  std::string wanted =
      fmt::format("a string, an array of token ids from 0 to {}, or an array of up to {} strings",
                  limits.n_vocab - 1, kMaxPrompts);
  if (!prompt) return fields.missing("prompt", wanted);
  if (prompt->is_string()) {
    request.prompts.emplace_back(std::string(prompt->get_string()));
    return;
  }
  if (!prompt->is_array() || prompt->get_array().empty())
    return fields.wrong("prompt", *prompt, wanted);
  const json::array& items = prompt->get_array();
  if (items[0].is_string()) {
    if (items.size() > kMaxPrompts) return fields.wrong("prompt", *prompt, wanted);
    for (std::size_t i = 0; i < items.size(); ++i) {
      if (!items[i].is_string())
        return fields.wrong(fmt::format("prompt[{}]", i), items[i], "a string, as before it");
      request.prompts.emplace_back(std::string(items[i].get_string()));
    }
  } else if (items[0].is_array()) {
    fields.unsupported("prompt",
                       ": several prompts of token ids in one request are not supported; send them "
                       "one by one");
  } else {
    std::vector<TokenId> tokens;
    tokens.reserve(items.size());
    for (std::size_t i = 0; i < items.size(); ++i) {
      auto token = token_id(items[i], limits);
      if (!token)
        return fields.wrong(fmt::format("prompt[{}]", i), items[i],
                            fmt::format("a token id from 0 to {}", limits.n_vocab - 1));
      tokens.push_back(*token);
    }
    request.prompts.emplace_back(std::move(tokens));
  }
}

void parse_stop(JsonFields& fields, CompletionRequest& request) {
  const json::value* stop = fields.find("stop");
  if (!stop) return;
  const std::string wanted =
      fmt::format("a string or an array of 1 to 4 strings, each of 1 to {} bytes", kMaxStopBytes);
  if (stop->is_string()) {
    request.stop.emplace_back(stop->get_string());
  } else if (stop->is_array() && stop->get_array().size() <= 4) {
    for (const json::value& entry : stop->get_array()) {
      if (!entry.is_string()) return fields.wrong("stop", *stop, wanted);
      request.stop.emplace_back(entry.get_string());
    }
  } else {
    return fields.wrong("stop", *stop, wanted);
  }
  for (const std::string& s : request.stop)
    if (s.empty() || s.size() > kMaxStopBytes) return fields.wrong("stop", *stop, wanted);
}

void parse_stop_token_ids(JsonFields& fields, const RequestLimits& limits,
                          CompletionRequest& request) {
  const json::array* ids = fields.array("stop_token_ids");
  if (!ids) return;
  if (ids->size() > kMaxStopTokens)
    return fields.wrong("stop_token_ids", json::value(*ids),
                        fmt::format("at most {} ids", kMaxStopTokens));
  for (const json::value& entry : *ids) {
    auto token = token_id(entry, limits);
    if (!token)
      return fields.wrong("stop_token_ids", entry,
                          fmt::format("token ids from 0 to {}", limits.n_vocab - 1));
    request.stop_tokens.push_back(*token);
  }
}

void parse_logit_bias(JsonFields& fields, const RequestLimits& limits, CompletionRequest& request) {
  const json::object* biases = fields.object("logit_bias");
  if (!biases) return;
  if (biases->size() > kMaxBiases)
    return fields.wrong("logit_bias", json::value(*biases),
                        fmt::format("at most {} entries", kMaxBiases));
  JsonFields values(*biases, "logit_bias.", &fields);
  for (const auto& entry : *biases) {
    std::string_view key(entry.key().data(), entry.key().size());
    TokenId token = -1;
    auto parsed = std::from_chars(key.data(), key.data() + key.size(), token);
    if (parsed.ec != std::errc() || parsed.ptr != key.data() + key.size() || token < 0 ||
        token >= limits.n_vocab)
      return fields.wrong("logit_bias", json::value(entry.key()),
                          fmt::format("token ids from 0 to {} as keys", limits.n_vocab - 1));
    request.sampling.logit_bias.emplace_back(token,
                                             static_cast<float>(values.number(key, 0, -100, 100)));
  }
}

void parse_seed(JsonFields& fields, CompletionRequest& request) {
  const json::value* seed = fields.find("seed");
  if (!seed) return;
  if (seed->is_int64())
    request.seed = static_cast<std::uint64_t>(seed->get_int64());
  else if (seed->is_uint64())
    request.seed = seed->get_uint64();
  else
    fields.wrong("seed", *seed, "a 64-bit integer");
}

void parse_logprobs(JsonFields& fields, CompletionRequest& request) {
  if (request.chat) {
    bool wanted = fields.boolean("logprobs", false);
    const json::value* top = fields.find("top_logprobs");
    int n = static_cast<int>(fields.integer("top_logprobs", 0, 0, kMaxTopLogprobs));
    if (top && !wanted && n > 0)
      fields.fail(ApiError::invalid("top_logprobs",
                                    "top_logprobs: wanted only together with logprobs: true"));
    if (wanted) request.top_logprobs = n;
  } else {
    const json::value* value = fields.find("logprobs");
    if (value && value->is_bool()) {
      if (value->get_bool())
        fields.wrong("logprobs", *value, fmt::format("an integer from 0 to {}", kMaxTopLogprobs));
      return;
    }
    request.top_logprobs = static_cast<int>(fields.integer("logprobs", -1, 0, kMaxTopLogprobs));
  }
}

void parse_response_format(JsonFields& fields) {
  const json::object* format = fields.object("response_format");
  if (!format) return;
  JsonFields inner(*format, "response_format.", &fields);
  std::string type = inner.string("type", "text");
  if (type != "text")
    fields.unsupported(
        "response_format",
        fmt::format(": found \"{}\"; structured output is not supported, only text is", type));
}

void parse_extensions(JsonFields& fields, CompletionRequest& request) {
  if (const json::object* options = fields.object("stream_options")) {
    JsonFields inner(*options, "stream_options.", &fields);
    request.include_usage = inner.boolean("include_usage", false);
    inner.boolean("include_obfuscation", false);
    if (inner.boolean("continuous_usage_stats", false)) inner.unsupported("continuous_usage_stats");
    for (auto& name : inner.unknown()) request.ignored.push_back(std::move(name));
  }
  if (const json::object* own = fields.object("foretoken")) {
    JsonFields inner(*own, "foretoken.", &fields);
    request.speculation = inner.boolean("speculation", true);
    request.trace = inner.boolean("trace", true);
    if (!inner.error() && !inner.unknown().empty())  // our own name space: a typo here is an error
      inner.fail(ApiError::invalid(
          inner.unknown()[0],
          fmt::format("{}: unknown, wanted speculation or trace", inner.unknown()[0])));
  }
  if (const json::object* metadata = fields.object("metadata")) {
    request.domain = JsonFields(*metadata, "metadata.", &fields).string("domain");
    bool printable = request.domain.size() <= kMaxDomainBytes;
    for (char c : request.domain)
      printable = printable && c > 0x20 && c < 0x7f && c != '"' && c != '\\';
    if (!printable)
      fields.fail(ApiError::invalid("metadata.domain",
                                    fmt::format("metadata.domain: wanted up to {} printable ASCII "
                                                "characters without spaces, quotes or backslashes",
                                                kMaxDomainBytes)));
  }
}

}  // namespace

std::variant<CompletionRequest, ApiError> parse_completion_request(std::string_view body, bool chat,
                                                                   const RequestLimits& limits) {
  const auto parsed = parse_object(body);
  if (const auto* error = std::get_if<ApiError>(&parsed)) return *error;
  JsonFields fields(std::get<json::object>(parsed));
  CompletionRequest request;
  request.chat = chat;
  request.model = fields.string("model");
  if (chat)
    parse_messages(fields, request);
  else
    parse_prompt(fields, limits, request);

  SamplingParams& sampling = request.sampling;
  sampling.temperature = static_cast<float>(fields.number("temperature", 1, 0, 2));
  sampling.top_p = static_cast<float>(fields.number("top_p", 1, 0, 1));
  if (sampling.top_p == 0) fields.wrong("top_p", json::value(0), "a number above 0, up to 1");
  sampling.min_p = static_cast<float>(fields.number("min_p", 0, 0, 1));
  sampling.top_k = static_cast<std::int32_t>(
      fields.integer("top_k", 0, -1, std::numeric_limits<std::int32_t>::max()));
  if (sampling.top_k < 0 || sampling.top_k >= limits.n_vocab) sampling.top_k = 0;
  sampling.presence_penalty = static_cast<float>(fields.number("presence_penalty", 0, -2, 2));
  sampling.frequency_penalty = static_cast<float>(fields.number("frequency_penalty", 0, -2, 2));
  sampling.repetition_penalty =
      static_cast<float>(fields.number("repetition_penalty", 1, 0.01, 10));
  parse_logit_bias(fields, limits, request);
  parse_seed(fields, request);

  const std::int64_t most_tokens = std::numeric_limits<std::int32_t>::max();
  for (const char* name : {"max_tokens", "max_completion_tokens"})
    if (fields.find(name)) request.max_tokens = fields.integer(name, 1, 1, most_tokens);
  request.n = static_cast<int>(fields.integer("n", 1, 1, limits.max_choices));
  if (const json::value* best_of = fields.find("best_of"))
    if (fields.integer("best_of", 1, 1, 128) != request.n)
      fields.unsupported("best_of", fmt::format(": found {}, only best_of equal to n is supported",
                                                json_kind(*best_of)));
  parse_stop(fields, request);
  parse_stop_token_ids(fields, limits, request);
  request.ignore_eos = fields.boolean("ignore_eos", false);
  parse_logprobs(fields, request);
  request.stream = fields.boolean("stream", false);
  if (chat) request.add_generation_prompt = fields.boolean("add_generation_prompt", true);
  parse_response_format(fields);
  parse_extensions(fields, request);

  for (const UnsupportedField& field : kUnsupported) {
    const json::value* value = fields.find(field.name);
    if (value && !field.off(*value))
      fields.unsupported(field.name,
                         " is not supported; it was not ignored because that would change the "
                         "meaning of the request");
  }
  for (std::string_view name : kWithoutEffect) fields.find(name);
  if (fields.error()) return *fields.error();
  for (auto& name : fields.unknown()) request.ignored.push_back(std::move(name));
  return request;
}

}  // namespace foretoken
