// A plain HTTP/1.1 client for one server at a time, blocking, with keep-alive: one object a thread.
// Responses are read piece by piece as they arrive, so a stream's gaps can be measured. The one
// file here that sees Beast.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "foretoken/protocol/result.h"

namespace foretoken {

struct ServerUrl {
  std::string host;
  std::string port;
  std::string prefix;  // path before "/v1/...", without a trailing '/'
  static Result<ServerUrl> parse(
      std::string_view url);  // http://host[:port][/prefix]; https is refused by name
};

struct ClientResponse {
  int status = 0;
  std::string content_type;
};

class HttpClient {
 public:
  // timeout_s: of silence, not of the whole answer. `stop`, when set by another thread, ends a call
  // within a tenth of a second.
  HttpClient(ServerUrl url, std::string api_key, double timeout_s,
             const std::atomic<bool>* stop = nullptr);
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  // GET where body is null. on_data sees the body's pieces as they come. Errors: kUnavailable (no
  // connection, broken off, silence), kInvalidInput (not HTTP). A connection that the server closed
  // between two calls is opened anew, once.
  Result<ClientResponse> call(const std::string& path, const std::string* body,
                              const std::function<void(std::string_view)>& on_data);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace foretoken
