// One HTTP request and the channel its answer goes out on, free of any HTTP library: the service
// and everything behind it see only these, and one translation unit (http_server.cpp) sees Beast.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace foretoken {

struct HttpRequest {
  std::string method;         // as sent: "GET"
  std::string path;           // without the query, percent-decoded
  std::string query;          // after '?', as sent
  std::string content_type;   // lower case, without parameters
  std::string authorization;  // the header's value
  std::string origin;
  std::string peer;             // the client's address, without its port
  bool loopback = false;        // it is on this machine
  bool forwarded = false;       // a proxy stands between: the peer is not who asks
  std::string request_headers;  // Access-Control-Request-Headers of a preflight
  std::string body;
  std::chrono::steady_clock::time_point arrived{};  // whole, at the service
};

struct HttpReply {
  int status = 200;
  std::string content_type = "application/json";
  std::vector<std::pair<std::string, std::string>>
      headers;       // beyond content type, length and connection
  std::string body;  // empty for a stream
};

// The answer to one request. Made by the connection, given to the service, kept alive by whoever
// will answer. Every method may be called from any thread; calls take effect in order on the
// connection's own executor. After the client has gone all of them do nothing. Invariant: exactly
// one of respond() or start_stream()..finish_stream() / cut() answers a request.
class Exchange {
 public:
  virtual ~Exchange() = default;
  virtual void respond(HttpReply response) = 0;
  // A stream of server-sent events: the head goes out at once, and a comment whenever nothing was
  // sent for a while (long prefill), so that proxies keep the connection.
  virtual void start_stream(HttpReply head) = 0;
  virtual void send(std::string bytes) = 0;
  virtual void finish_stream() = 0;
  virtual void cut() = 0;  // ends a stream that cannot be ended properly
  // Runs `gone` once if the client leaves (or reads too slowly to be served within the buffer
  // limit) before the answer is complete; at once if it has left already. On the connection's
  // executor.
  virtual void on_disconnect(std::function<void()> gone) = 0;
  virtual void post(
      std::function<void()> work) = 0;  // runs it on the connection's executor, in order
};

}  // namespace foretoken
