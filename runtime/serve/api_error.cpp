#include "runtime/serve/api_error.h"

#include <fmt/format.h>

#include <boost/json.hpp>

namespace foretoken {

ApiError ApiError::invalid(std::string param, std::string message) {
  return {.message = std::move(message), .param = std::move(param)};
}
ApiError ApiError::unsupported(std::string param, std::string message) {
  return {501, "unsupported_field", std::move(message), std::move(param)};
}
ApiError ApiError::not_found(std::string message, std::string code) {
  return {404, std::move(code), std::move(message)};
}
ApiError ApiError::unavailable(std::string message, int retry_after_s) {
  return {503, "unavailable", std::move(message), "", retry_after_s};
}
ApiError ApiError::overloaded(std::string message) {
  return {429, "queue_full", std::move(message), "", 1};
}
ApiError ApiError::internal(std::string message) {
  return {500, "internal_error", std::move(message)};
}
ApiError ApiError::context_length(std::string message, std::int64_t n_prompt, std::int64_t n_ctx) {
  const char* param = n_prompt >= n_ctx ? "prompt" : "max_tokens";
  return {400, "context_length_exceeded", std::move(message), param, 0, n_prompt, n_ctx};
}

std::string error_type(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    case 500:
      return "server_error";
    case 501:
      return "not_supported_error";
    case 503:
      return "unavailable_error";
    default:
      return "invalid_request_error";
  }
}

std::string error_json(const ApiError& error) {
  auto or_null = [](const std::string& s) {
    return s.empty() ? boost::json::value(nullptr) : boost::json::value(s);
  };
  boost::json::object body{{"message", error.message},
                           {"type", error_type(error.status)},
                           {"param", or_null(error.param)},
                           {"code", or_null(error.code)}};
  if (error.n_prompt_tokens) body["n_prompt_tokens"] = *error.n_prompt_tokens;
  if (error.n_ctx) body["n_ctx"] = *error.n_ctx;
  return boost::json::serialize(boost::json::object{{"error", std::move(body)}});
}

HttpReply error_response(const ApiError& error) {
  HttpReply response;
  response.status = error.status;
  if (error.retry_after_s > 0)
    response.headers.emplace_back("Retry-After", std::to_string(error.retry_after_s));
  if (error.status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  response.body = error_json(error);
  return response;
}

}  // namespace foretoken
