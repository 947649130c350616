#include "runtime/serve/api_error.h"

#include <fmt/format.h>

#include <boost/json.hpp>

namespace foretoken {

ApiError ApiError::invalid(std::string param, std::string message) {
  ApiError error;
  error.param = std::move(param);
  error.message = std::move(message);
  return error;
}

ApiError ApiError::unsupported(std::string param, std::string message) {
  ApiError error = invalid(std::move(param), std::move(message));
  error.status = 501;
  error.code = "unsupported_field";
  return error;
}

ApiError ApiError::not_found(std::string message, std::string code) {
  ApiError error = invalid("", std::move(message));
  error.status = 404;
  error.code = std::move(code);
  return error;
}

ApiError ApiError::unavailable(std::string message, int retry_after_s) {
  ApiError error = invalid("", std::move(message));
  error.status = 503;
  error.code = "unavailable";
  error.retry_after_s = retry_after_s;
  return error;
}

ApiError ApiError::overloaded(std::string message) {
  ApiError error = invalid("", std::move(message));
  error.status = 429;
  error.code = "queue_full";
  error.retry_after_s = 1;
  return error;
}

ApiError ApiError::internal(std::string message) {
  ApiError error = invalid("", std::move(message));
  error.status = 500;
  error.code = "internal_error";
  return error;
}

ApiError ApiError::context_length(std::string message, std::int64_t n_prompt, std::int64_t n_ctx) {
  ApiError error = invalid(n_prompt >= n_ctx ? "prompt" : "max_tokens", std::move(message));
  error.code = "context_length_exceeded";
  error.n_prompt_tokens = n_prompt;
  error.n_ctx = n_ctx;
  return error;
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
