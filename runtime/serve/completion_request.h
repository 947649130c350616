// A /v1/completions or /v1/chat/completions body, checked and typed. JSON ends here.
// Everything foretoken does not do but a client may rely on is refused (501), never silently
// dropped; unknown fields are ignored and listed in `ignored`.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "runtime/engine/request.h"
#include "runtime/serve/api_error.h"
#include "runtime/text/chat_template.h"

namespace foretoken {

struct RequestLimits {
  std::int64_t n_vocab = 0;
  std::int64_t n_ctx = 0;  // prompt and output together
  int max_choices = 16;
};

using PromptInput = std::variant<std::string, std::vector<TokenId>, std::vector<ChatMessage>>;

struct CompletionRequest {
  bool chat = false;
  std::string model;  // "" = whichever is served
  // One a prompt: chat has one, /v1/completions may have several (an array of strings).
  std::vector<PromptInput> prompts;
  SamplingParams sampling;  // seed not yet set
  std::optional<std::uint64_t> seed;
  std::optional<std::int64_t> max_tokens;  // absent: the rest of the context
  int n = 1;
  std::vector<std::string> stop;
  std::vector<TokenId> stop_tokens;
  bool ignore_eos = false;
  int top_logprobs = -1;  // -1: none wanted
  bool stream = false;
  bool include_usage = false;
  bool speculation = true, trace = true;
  std::string domain;
  bool add_generation_prompt = true;
  std::vector<std::string> ignored;  // unknown fields
};

std::variant<CompletionRequest, ApiError> parse_completion_request(std::string_view body, bool chat,
                                                                   const RequestLimits& limits);

}  // namespace foretoken
