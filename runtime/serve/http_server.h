// The HTTP/1.1 server: sockets, parsing, limits and time-outs; what is asked and answered is the
// handler's. A few I/O threads run callback sessions (no coroutines: g++ 12 miscompiles some
// awaitables), one strand a connection. Bounds: header and body bytes, connections, bytes of large
// bodies in flight, bytes of an answer waiting for a slow reader (over it the client counts as
// gone), and time for every phase.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "foretoken/protocol/result.h"
#include "runtime/serve/http_types.h"

namespace foretoken {

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  int port = 8080;  // 0: any free one
  int io_threads = 2;
  int max_connections = 512;
  std::size_t max_header_bytes = 16 << 10;
  std::size_t max_body_bytes = 8 << 20;
  std::size_t max_bodies_bytes = 256 << 20;     // of all bodies over 64 KiB being read or answered
  std::size_t max_unsent_bytes = 1 << 20;       // of one answer's stream
  std::size_t max_pipelined_bytes = 256 << 10;  // received while an answer is under way
  double idle_timeout_s = 75;                   // between requests
  double header_timeout_s = 10;                 // from a request's first byte to its last header
  double body_timeout_s = 60;                   // the whole body
  double write_timeout_s = 60;                  // without any progress
  double ping_interval_s = 15;                  // of a stream on which nothing is sent
  std::vector<std::string> cors_origins = {"*"};  // empty: no CORS headers
};

class HttpHandler {
 public:
  virtual ~HttpHandler() = default;
  // Called with the head alone, before the body is read: an answer ends the request (401, 404, 413,
  // OPTIONS).
  virtual std::optional<HttpReply> answer_early(const HttpRequest& head) = 0;
  // On an I/O thread: must not block for long.
  virtual void handle(HttpRequest request, std::shared_ptr<Exchange> exchange) = 0;
  // After the last byte, or when the client left (status 499).
  virtual void answered(const std::string& method, const std::string& path, int status,
                        double seconds) = 0;
};

class HttpServer {
 public:
  // Binds and starts serving. The handler must outlive the server's threads (stop()).
  static Result<std::unique_ptr<HttpServer>> start(const HttpServerOptions& options,
                                                   HttpHandler& handler);
  // stop()s. Exchanges keep connections alive and those refer to the server: whoever holds some
  // (the engine's open requests) must be gone before it.
  virtual ~HttpServer() = default;
  virtual int port() const = 0;
  virtual int open_connections() const = 0;
  virtual int open_exchanges() const = 0;  // requests being answered
  virtual void drain() = 0;  // every answer from now on closes its connection; idle ones close
  virtual void stop() = 0;   // cuts what is open, joins the threads; idempotent
};

}  // namespace foretoken
