// One HTTP request and the channel its answer goes out on, free of any HTTP library: the service
// and everything behind it see only these, and one translation unit (http_server.cpp) sees Beast.
#pragma once

#include <atomic>
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
};

struct HttpReply {
  int status = 200;
  std::string content_type = "application/json";
  // Beyond content type, length and connection.
  std::vector<std::pair<std::string, std::string>> headers = {};
  std::string body = {};  // empty for a stream
};

class Exchange;

// What a connection's executor is to do once it is woken (Exchange::wake).
class Wakeable {
 public:
  virtual ~Wakeable() = default;
  virtual void woken() = 0;  // on the executor

 private:
  friend class WakeQueue;
  // From the waking until it is about to run: what keeps both alive, and the next one waiting.
  std::atomic<bool> waiting_{false};
  std::shared_ptr<Wakeable> self_;
  std::shared_ptr<Exchange> exchange_;
  Wakeable* next_ = nullptr;
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
  // Runs it on the connection's executor, in order.
  virtual void post(std::function<void()> work) = 0;
  // Likewise who->woken(), once for all calls until it runs; always with the same exchange. Neither
  // allocates nor waits: for the engine's thread.
  virtual void wake(std::shared_ptr<Wakeable> who) noexcept = 0;
};

// Those who were woken and are not yet posted. push() from any thread; take() by one at a time.
class WakeQueue {
 public:
  ~WakeQueue() {
    take([](std::shared_ptr<Exchange>, std::shared_ptr<Wakeable>) {});
  }
  // True: it is the first, and somebody has to be told.
  bool push(std::shared_ptr<Exchange> exchange, std::shared_ptr<Wakeable> who) noexcept {
    Wakeable& node = *who;
    if (node.waiting_.exchange(true)) return false;
    node.self_ = std::move(who);
    node.exchange_ = std::move(exchange);
    Wakeable* next = first_.load();
    do {
      node.next_ = next;
    } while (!first_.compare_exchange_weak(next, &node));
    return next == nullptr;
  }
  template <class Post>
  void take(Post post) {
    for (Wakeable* node = first_.exchange(nullptr); node;) {
      Wakeable& here = *std::exchange(node, node->next_);
      post(std::move(here.exchange_), std::move(here.self_));
    }
  }
  // Before woken(): a waking from now on counts anew.
  static void begin(Wakeable& who) { who.waiting_ = false; }

 private:
  std::atomic<Wakeable*> first_{nullptr};
};

}  // namespace foretoken
