#include "runtime/serve/completion_json.h"

#include <algorithm>
#include <cmath>

namespace foretoken {
namespace {

namespace json = boost::json;

// JSON has no infinities; clients know -9999 as "masked".
double finite_logprob(float logprob) {
  return std::isfinite(logprob) ? std::max(-9999.0, static_cast<double>(logprob)) : -9999.0;
}

json::object chat_logprob(const Tokenizer& tokenizer, TokenId token, float logprob) {
  json::array bytes;
  for (char c : tokenizer.bytes(token, true)) bytes.push_back(static_cast<unsigned char>(c));
  return {{"token", token_text(tokenizer, token)},
          {"logprob", finite_logprob(logprob)},
          {"bytes", std::move(bytes)}};
}

double per_second(std::int64_t n, double ms) {
  return ms > 0 ? 1000.0 * static_cast<double>(n) / ms : 0.0;
}
double per_token(std::int64_t n, double ms) { return n > 0 ? ms / static_cast<double>(n) : 0.0; }

}  // namespace

json::object usage_json(const AnswerTotals& totals) {
  return {{"prompt_tokens", totals.prompt_tokens},
          {"completion_tokens", totals.completion_tokens},
          {"total_tokens", totals.prompt_tokens + totals.completion_tokens},
          {"prompt_tokens_details", json::object{{"cached_tokens", totals.cached_tokens}}}};
}

void add_timings(json::object& answer, const AnswerTotals& totals) {
  const RequestTimings& t = totals.timings;
  answer["timings"] = {{"cache_n", t.cached_n},
                       {"prompt_n", t.prompt_n},
                       {"prompt_ms", t.prompt_ms},
                       {"prompt_per_token_ms", per_token(t.prompt_n, t.prompt_ms)},
                       {"prompt_per_second", per_second(t.prompt_n, t.prompt_ms)},
                       {"predicted_n", t.predicted_n},
                       {"predicted_ms", t.predicted_ms},
                       {"predicted_per_token_ms", per_token(t.predicted_n, t.predicted_ms)},
                       {"predicted_per_second", per_second(t.predicted_n, t.predicted_ms)},
                       {"draft_n", t.draft_n},
                       {"draft_n_accepted", t.draft_n_accepted}};
  json::value acceptance_length = nullptr;  // of no drafting round there is none
  if (t.drafting_rounds > 0)
    acceptance_length =
        1.0 + static_cast<double>(t.draft_n_accepted) / static_cast<double>(t.drafting_rounds);
  answer["foretoken"] = {{"seed", totals.seed},
                         {"speculator_version", t.speculator_version},
                         {"rounds", t.rounds},
                         {"drafting_rounds", t.drafting_rounds},
                         {"acceptance_length", std::move(acceptance_length)},
                         {"queue_ms", t.queue_ms}};
}

json::value logprobs_json(const Tokenizer& tokenizer, const std::vector<ShownLogprob>& logprobs,
                          bool chat) {
  if (chat) {
    json::array content;
    for (const ShownLogprob& shown : logprobs) {
      json::object entry = chat_logprob(tokenizer, shown.logprob.token, shown.logprob.logprob);
      json::array top;
      for (const auto& [token, logprob] : shown.logprob.top)
        top.push_back(chat_logprob(tokenizer, token, logprob));
      entry["top_logprobs"] = std::move(top);
      content.push_back(std::move(entry));
    }
    return json::object{{"content", std::move(content)}, {"refusal", nullptr}};
  }
  json::array tokens, token_logprobs, top_logprobs, offsets;
  for (const ShownLogprob& shown : logprobs) {
    tokens.push_back(json::value(token_text(tokenizer, shown.logprob.token)));
    token_logprobs.push_back(finite_logprob(shown.logprob.logprob));
    json::object top;
    for (const auto& [token, logprob] : shown.logprob.top)
      top.emplace(token_text(tokenizer, token), finite_logprob(logprob));
    top_logprobs.push_back(std::move(top));
    offsets.push_back(shown.text_offset);
  }
  return json::object{{"tokens", std::move(tokens)},
                      {"token_logprobs", std::move(token_logprobs)},
                      {"top_logprobs", std::move(top_logprobs)},
                      {"text_offset", std::move(offsets)}};
}

json::object envelope(const AnswerIdentity& identity, bool chunk) {
  const char* object =
      identity.chat ? (chunk ? "chat.completion.chunk" : "chat.completion") : "text_completion";
  return {{"id", identity.id},
          {"object", object},
          {"created", identity.created_unix_s},
          {"model", identity.model},
          {"system_fingerprint", identity.system_fingerprint}};
}

std::string server_sent_event(const json::object& payload) {
  std::string out = "data: ";
  out += json::serialize(payload);
  out += "\n\n";
  return out;
}

}  // namespace foretoken
