// An error as clients of the OpenAI API expect it: an HTTP status and {"error": {message, type,
// param, code}}.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "foretoken/protocol/result.h"
#include "runtime/serve/http_types.h"

namespace foretoken {

struct ApiError {
  int status = 400;
  std::string code = {};  // "" = null
  std::string message = {};
  std::string param = {};  // the field at fault; "" = null
  int retry_after_s = 0;   // > 0: a Retry-After header
  // With context_length_exceeded.
  std::optional<std::int64_t> n_prompt_tokens = {}, n_ctx = {};

  static ApiError invalid(std::string param, std::string message);  // 400
  static ApiError unsupported(std::string param,
                              std::string message);  // 501: known, refused rather than ignored
  static ApiError not_found(std::string message, std::string code);     // 404
  static ApiError unavailable(std::string message, int retry_after_s);  // 503
  static ApiError overloaded(std::string message);                      // 429
  static ApiError internal(std::string message);                        // 500
  static ApiError context_length(std::string message, std::int64_t n_prompt,
                                 std::int64_t n_ctx);  // 400, from token_limit()
};

std::string error_type(int status);  // "invalid_request_error", "authentication_error", ...
std::string error_json(const ApiError& error);
HttpReply error_response(const ApiError& error);

}  // namespace foretoken
