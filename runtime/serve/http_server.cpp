#include "runtime/serve/http_server.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/string.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <deque>
#include <mutex>
#include <set>
#include <thread>

#include "runtime/serve/api_error.h"

namespace foretoken {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using tcp = asio::ip::tcp;
using ErrorCodeB = boost::system::error_code;
using SteadyClock = std::chrono::steady_clock;

constexpr std::size_t kLargeBody = 64 << 10;  // bodies below it are not counted
constexpr std::size_t kLingerBytes = 1
                                     << 20;  // read and dropped after an early refusal, so that the
constexpr double kLingerSeconds = 2;         // client sees the answer rather than a reset

SteadyClock::duration seconds(double s) {
  return std::chrono::duration_cast<SteadyClock::duration>(std::chrono::duration<double>(s));
}

std::string percent_decode(std::string_view in) {
  auto hex = [](char c) {
    return c >= '0' && c <= '9'                 ? c - '0'
           : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10
                                                : -1;
  };
  std::string out;
  for (std::size_t i = 0; i < in.size(); ++i) {
    if (in[i] == '%' && i + 2 < in.size() && hex(in[i + 1]) >= 0 && hex(in[i + 2]) >= 0) {
      out.push_back(static_cast<char>(hex(in[i + 1]) * 16 + hex(in[i + 2])));
      i += 2;
    } else {
      out.push_back(in[i]);
    }
  }
  return out;
}

std::string_view to_std(beast::string_view s) { return {s.data(), s.size()}; }

class Session;

class Server final : public HttpServer {
 public:
  Server(const HttpServerOptions& options, HttpHandler& handler)
      : options_(options),
        handler_(handler),
        context_(std::max(1, options.io_threads)),
        acceptor_(asio::make_strand(context_)),
        backoff_(acceptor_.get_executor()),
        news_(acceptor_.get_executor()) {}
  ~Server() override { stop(); }

  Status open();
  int port() const override { return port_; }
  int open_connections() const override { return connections_.load(); }
  int open_exchanges() const override { return exchanges_.load(); }
  void drain() override;
  void stop() override;

  void accept();
  void add(const std::shared_ptr<Session>& session);
  void remove(Session* session);
  void wake(std::shared_ptr<Exchange> exchange, std::shared_ptr<Wakeable> who) noexcept {
    if (woken_.push(std::move(exchange), std::move(who))) ::eventfd_write(news_fd_, 1);
  }

  const HttpServerOptions options_;
  HttpHandler& handler_;
  std::atomic<int> connections_{0}, exchanges_{0};
  std::atomic<std::size_t> bodies_bytes_{0};
  std::atomic<bool> draining_{false};
  int port_ = 0;

 private:
  template <class F>
  void for_each_session(F f);
  void hear_news();
  std::mutex mutex_;
  std::set<Session*> sessions_;  // guarded by mutex_; each removes itself before it dies
  std::vector<std::thread> threads_;
  bool stopped_ = false;

 public:
  // Last, so first destroyed: the handlers it still holds own sessions, which use the members
  // above.
  asio::io_context context_;
  tcp::acceptor acceptor_;
  asio::steady_timer backoff_;
  // Says that woken_ is no longer empty.
  asio::posix::stream_descriptor news_;
  int news_fd_ = -1;
  WakeQueue woken_;  // holds sessions as well
};

// One connection. Every member function runs on its strand.
class Session : public std::enable_shared_from_this<Session> {
 public:
  Session(Server& server, tcp::socket socket)
      : server_(server),
        socket_(std::move(socket)),
        deadline_(socket_.get_executor()),
        ping_(socket_.get_executor()) {
    ++server_.connections_;
  }
  ~Session() {
    release_body();
    server_.remove(this);
    --server_.connections_;
  }

  auto executor() { return socket_.get_executor(); }
  Server& server() { return server_; }
  void start(bool over_limit) {
    ErrorCodeB ignored;
    socket_.set_option(tcp::no_delay(true), ignored);
    if (over_limit) {
      keep_alive_ = false;
      refuse(503, "too many connections");
      return;
    }
    next_request();
  }
  // From drain(): an idle connection closes now, a busy one after its answer.
  void close_if_idle() {
    if (phase_ == Phase::kIdle && served_ > 0) return close();
    keep_alive_ = false;
  }
  void cut() { leave(); }

  // The exchange's half; stale serials belong to requests already answered.
  void respond(std::uint64_t serial, HttpReply response);
  void start_stream(std::uint64_t serial, HttpReply head);
  void send(std::uint64_t serial, std::string bytes);
  void finish_stream(std::uint64_t serial);
  void cut(std::uint64_t serial) {
    if (serial == serial_ && phase_ == Phase::kAnswering) leave();
  }
  void on_disconnect(std::uint64_t serial, std::function<void()> gone) {
    if (serial == serial_ && phase_ == Phase::kAnswering)
      gone_ = std::move(gone);
    else
      gone();
  }

 private:
  enum class Phase { kIdle, kHeader, kBody, kAnswering, kLingering, kClosed };

  void next_request();
  void read_header();
  void on_header(ErrorCodeB error);
  void on_body(ErrorCodeB error);
  bool reserve_body(std::optional<std::uint64_t> length);
  void release_body() {
    server_.bodies_bytes_ -= body_reserved_;
    body_reserved_ = 0;
  }
  void read_failed(ErrorCodeB error);
  void refuse(int status, std::string message);
  void monitor();
  void begin_answer();
  void queue_response(HttpReply response);
  std::string head(const HttpReply& response, std::optional<std::size_t> length) const;
  void enqueue(std::string bytes);
  void write_more();
  void on_written(ErrorCodeB error);
  void answer_done();
  void linger();
  void linger_read();
  void leave();
  void close();
  void arm(double s);
  void disarm() { ++deadline_serial_, deadline_.cancel(); }
  void arm_ping();

  Server& server_;
  tcp::socket socket_;
  asio::steady_timer deadline_, ping_;
  beast::flat_buffer buffer_;
  std::optional<http::request_parser<http::string_body>> parser_;
  Phase phase_ = Phase::kIdle;
  HttpRequest request_;  // its head while it is answered (the body was moved out)
  std::uint64_t serial_ = 0, deadline_serial_ = 0, served_ = 0;
  bool keep_alive_ = true, http_1_0_ = false, timed_out_ = false;
  bool monitoring_ = false, next_after_monitor_ = false;
  bool streaming_ = false, last_byte_queued_ = false;
  bool counted_ = false;  // in exchanges_
  int status_ = 0;
  SteadyClock::time_point started_;
  std::function<void()> gone_;
  std::deque<std::string> queue_, writing_;
  std::size_t unsent_bytes_ = 0, body_reserved_ = 0, lingered_bytes_ = 0;
  std::vector<char> drop_;
};

class SessionExchange final : public Exchange,
                              public std::enable_shared_from_this<SessionExchange> {
 public:
  SessionExchange(std::shared_ptr<Session> session, std::uint64_t serial)
      : session_(std::move(session)), serial_(serial) {}
  void respond(HttpReply response) override {
    run([s = session_, n = serial_, r = std::move(response)]() mutable {
      s->respond(n, std::move(r));
    });
  }
  void start_stream(HttpReply head) override {
    run([s = session_, n = serial_, h = std::move(head)]() mutable {
      s->start_stream(n, std::move(h));
    });
  }
  void send(std::string bytes) override {
    run([s = session_, n = serial_, b = std::move(bytes)]() mutable { s->send(n, std::move(b)); });
  }
  void finish_stream() override {
    run([s = session_, n = serial_] { s->finish_stream(n); });
  }
  void cut() override {
    run([s = session_, n = serial_] { s->cut(n); });
  }
  void on_disconnect(std::function<void()> gone) override {
    run([s = session_, n = serial_, g = std::move(gone)]() mutable {
      s->on_disconnect(n, std::move(g));
    });
  }
  void post(std::function<void()> work) override {
    asio::post(session_->executor(), std::move(work));
  }
  void wake(std::shared_ptr<Wakeable> who) noexcept override {
    session_->server().wake(shared_from_this(), std::move(who));
  }

 private:
  template <class F>
  void run(F f) {
    asio::dispatch(session_->executor(), std::move(f));
  }  // inline when already on the strand
  std::shared_ptr<Session> session_;
  std::uint64_t serial_;
};

void Session::arm(double s) {
  std::uint64_t serial = ++deadline_serial_;
  deadline_.expires_after(seconds(s));
  deadline_.async_wait([self = shared_from_this(), serial](ErrorCodeB error) {
    if (error || serial != self->deadline_serial_ || self->phase_ == Phase::kClosed) return;
    self->timed_out_ = true;
    ErrorCodeB ignored;
    if (self->phase_ == Phase::kHeader || self->phase_ == Phase::kBody)
      self->socket_.cancel(ignored);  // -> 408
    else if (self->phase_ == Phase::kAnswering)
      self->leave();
    else
      self->close();
  });
}

void Session::next_request() {
  phase_ = Phase::kIdle;
  timed_out_ = streaming_ = last_byte_queued_ = false;
  // While draining a new connection still gets its one answer (503, or what /health says).
  if (served_ > 0 && (!keep_alive_ || server_.draining_)) return close();
  if (buffer_.size() > 0) return read_header();
  buffer_.shrink_to_fit();
  arm(server_.options_.idle_timeout_s);
  socket_.async_wait(tcp::socket::wait_read, [self = shared_from_this()](ErrorCodeB error) {
    if (self->phase_ == Phase::kClosed) return;
    if (error) return self->close();
    self->read_header();
  });
}

void Session::read_header() {
  phase_ = Phase::kHeader;
  arm(server_.options_.header_timeout_s);
  started_ = SteadyClock::now();
  parser_.emplace();
  parser_->header_limit(static_cast<std::uint32_t>(server_.options_.max_header_bytes));
  parser_->body_limit(server_.options_.max_body_bytes);
  http::async_read_header(
      socket_, buffer_, *parser_,
      [self = shared_from_this()](ErrorCodeB error, std::size_t) { self->on_header(error); });
}

void Session::on_header(ErrorCodeB error) {
  if (phase_ == Phase::kClosed) return;
  if (error) return read_failed(error);
  const auto& message = parser_->get();
  http_1_0_ = message.version() < 11;
  keep_alive_ = message.keep_alive() && !server_.draining_;
  request_ = HttpRequest{};
  request_.method = std::string(to_std(message.method_string()));
  std::string_view target = to_std(message.target());
  std::size_t question = target.find('?');
  request_.path = percent_decode(target.substr(0, question));
  if (question != std::string_view::npos) request_.query = std::string(target.substr(question + 1));
  std::string_view type = to_std(message[http::field::content_type]);
  request_.content_type = std::string(type.substr(0, type.find(';')));
  while (!request_.content_type.empty() && request_.content_type.back() == ' ')
    request_.content_type.pop_back();
  for (char& c : request_.content_type)
    c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  request_.authorization = std::string(to_std(message[http::field::authorization]));
  request_.origin = std::string(to_std(message[http::field::origin]));
  boost::system::error_code unknown;
  const auto peer = socket_.remote_endpoint(unknown);
  if (!unknown) {
    request_.peer = peer.address().to_string();
    request_.loopback = peer.address().is_loopback();
  }
  request_.forwarded = message.find(http::field::forwarded) != message.end() ||
                       message.find("X-Forwarded-For") != message.end() ||
                       message.find(http::field::via) != message.end();
  request_.request_headers =
      std::string(to_std(message[http::field::access_control_request_headers]));

  if (auto early = server_.handler_.answer_early(request_)) {
    keep_alive_ =
        keep_alive_ && parser_->is_done();  // else unread body bytes would be the next request
    begin_answer();
    return queue_response(std::move(*early));
  }
  std::optional<std::uint64_t> length;
  if (auto known = parser_->content_length()) length = *known;
  if (!reserve_body(parser_->chunked() ? std::nullopt
                                       : std::optional<std::uint64_t>(length.value_or(0))))
    return refuse(503, "too many large request bodies at once; try again");
  phase_ = Phase::kBody;
  arm(server_.options_.body_timeout_s);
  auto read_body = [](std::shared_ptr<Session> self) {
    http::async_read(self->socket_, self->buffer_, *self->parser_,
                     [self](ErrorCodeB e, std::size_t) { self->on_body(e); });
  };
  if (beast::iequals(message[http::field::expect], "100-continue") && !http_1_0_) {
    static constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
    asio::async_write(socket_, asio::buffer(kContinue.data(), kContinue.size()),
                      [self = shared_from_this(), read_body](ErrorCodeB e, std::size_t) {
                        if (e) return self->close();
                        read_body(self);
                      });
  } else {
    read_body(shared_from_this());
  }
}

bool Session::reserve_body(std::optional<std::uint64_t> length) {
  std::size_t bytes = length.value_or(server_.options_.max_body_bytes);
  if (bytes <= kLargeBody) return true;
  if (server_.bodies_bytes_.fetch_add(bytes) + bytes > server_.options_.max_bodies_bytes) {
    server_.bodies_bytes_ -= bytes;
    return false;
  }
  body_reserved_ = bytes;
  return true;
}

void Session::on_body(ErrorCodeB error) {
  if (phase_ == Phase::kClosed) return;
  if (error) return read_failed(error);
  HttpRequest request = request_;
  request.body = std::move(parser_->get().body());
  parser_.reset();
  begin_answer();
  monitor();
  server_.handler_.handle(std::move(request),
                          std::make_shared<SessionExchange>(shared_from_this(), serial_));
}

void Session::read_failed(ErrorCodeB error) {
  if (error == http::error::end_of_stream) return close();
  if (timed_out_) return refuse(408, "the request did not arrive in time");
  if (error == http::error::header_limit || error == http::error::buffer_overflow)
    return refuse(431, fmt::format("the request's headers are larger than {} bytes",
                                   server_.options_.max_header_bytes));
  if (error == http::error::body_limit)
    return refuse(413, fmt::format("the request's body is larger than {} bytes",
                                   server_.options_.max_body_bytes));
  if (error.category() == make_error_code(http::error::bad_method).category() &&
      error != http::error::partial_message)
    return refuse(400, fmt::format("malformed HTTP request: {}", error.message()));
  close();  // the client went away in the middle of its request
}

void Session::refuse(int status, std::string message) {
  keep_alive_ = false;
  begin_answer();
  queue_response(error_response(
      {.status = status, .message = std::move(message), .retry_after_s = status == 503 ? 1 : 0}));
}

void Session::begin_answer() {
  ++serial_;
  phase_ = Phase::kAnswering;
  status_ = 0;
  counted_ = true;
  ++server_.exchanges_;
  disarm();
}

// While an answer is under way one read stays open: it notices at once that the client has gone,
// and keeps what a pipelining client sends for later.
void Session::monitor() {
  if (buffer_.size() >= server_.options_.max_pipelined_bytes) return leave();
  monitoring_ = true;
  socket_.async_read_some(buffer_.prepare(4096),
                          [self = shared_from_this()](ErrorCodeB error, std::size_t n) {
                            self->monitoring_ = false;
                            if (self->phase_ == Phase::kClosed) return;
                            self->buffer_.commit(n);
                            if (self->next_after_monitor_) {
                              self->next_after_monitor_ = false;
                              if (error && error != asio::error::operation_aborted)
                                return self->close();
                              return self->next_request();
                            }
                            if (error) return self->leave();
                            self->monitor();
                          });
}

std::string Session::head(const HttpReply& response, std::optional<std::size_t> length) const {
  std::string out =
      fmt::format("HTTP/1.1 {} {}\r\n", response.status,
                  to_std(http::obsolete_reason(static_cast<http::status>(response.status))));
  auto field = [&](std::string_view name, std::string_view value) {
    fmt::format_to(std::back_inserter(out), "{}: {}\r\n", name, value);
  };
  if (response.status != 204) field("Content-Type", response.content_type);
  if (length && response.status != 204) field("Content-Length", std::to_string(*length));
  if (!length && !http_1_0_) field("Transfer-Encoding", "chunked");
  for (const auto& [name, value] : response.headers) field(name, value);
  const auto& origins = server_.options_.cors_origins;
  if (std::find(origins.begin(), origins.end(), "*") != origins.end()) {
    field("Access-Control-Allow-Origin", "*");
  } else if (!request_.origin.empty() &&
             std::find(origins.begin(), origins.end(), request_.origin) != origins.end()) {
    field("Access-Control-Allow-Origin", request_.origin);
    field("Vary", "Origin");
  }
  field("Connection", keep_alive_ && !server_.draining_ ? "keep-alive" : "close");
  out += "\r\n";
  return out;
}

void Session::queue_response(HttpReply response) {
  status_ = response.status;
  last_byte_queued_ = true;
  if (server_.draining_) keep_alive_ = false;
  std::string bytes = head(response, response.body.size());
  if (request_.method != "HEAD") bytes += response.body;
  enqueue(std::move(bytes));
}

void Session::respond(std::uint64_t serial, HttpReply response) {
  if (serial == serial_ && phase_ == Phase::kAnswering && !last_byte_queued_ && !streaming_)
    queue_response(std::move(response));
}

void Session::start_stream(std::uint64_t serial, HttpReply response) {
  if (serial != serial_ || phase_ != Phase::kAnswering || last_byte_queued_ || streaming_) return;
  streaming_ = true;
  status_ = response.status;
  if (server_.draining_ || http_1_0_) keep_alive_ = false;
  enqueue(head(response, std::nullopt));
}

void Session::send(std::uint64_t serial, std::string bytes) {
  if (serial != serial_ || phase_ != Phase::kAnswering || !streaming_ || last_byte_queued_ ||
      bytes.empty())
    return;
  if (!http_1_0_) bytes = fmt::format("{:x}\r\n{}\r\n", bytes.size(), bytes);
  if (unsent_bytes_ > 0 && unsent_bytes_ + bytes.size() > server_.options_.max_unsent_bytes) {
    spdlog::info("{} {}: the client reads too slowly, {} bytes are waiting; cancelled",
                 request_.method, request_.path, unsent_bytes_);
    return leave();
  }
  enqueue(std::move(bytes));
}

void Session::finish_stream(std::uint64_t serial) {
  if (serial != serial_ || phase_ != Phase::kAnswering || !streaming_ || last_byte_queued_) return;
  last_byte_queued_ = true;
  ping_.cancel();
  if (!http_1_0_) return enqueue("0\r\n\r\n");
  if (queue_.empty() && writing_.empty()) answer_done();
}

void Session::arm_ping() {
  ping_.expires_after(seconds(server_.options_.ping_interval_s));
  ping_.async_wait([self = shared_from_this(), serial = serial_](ErrorCodeB error) {
    if (!error) self->send(serial, ": keep-alive\n\n");
  });
}

void Session::enqueue(std::string bytes) {
  unsent_bytes_ += bytes.size();
  queue_.push_back(std::move(bytes));
  if (writing_.empty()) write_more();
}

void Session::write_more() {
  writing_.swap(queue_);
  std::vector<asio::const_buffer> buffers;
  buffers.reserve(writing_.size());
  for (const auto& piece : writing_) buffers.push_back(asio::buffer(piece));
  arm(server_.options_.write_timeout_s);
  asio::async_write(socket_, buffers, [self = shared_from_this()](ErrorCodeB error, std::size_t) {
    self->on_written(error);
  });
}

void Session::on_written(ErrorCodeB error) {
  if (phase_ == Phase::kClosed) return;
  for (const auto& piece : writing_) unsent_bytes_ -= piece.size();
  writing_.clear();
  if (error) return leave();
  disarm();
  if (!queue_.empty()) return write_more();
  if (last_byte_queued_) return answer_done();
  if (streaming_) arm_ping();
}

void Session::answer_done() {
  server_.handler_.answered(request_.method, request_.path, status_,
                            std::chrono::duration<double>(SteadyClock::now() - started_).count());
  --server_.exchanges_;
  counted_ = false;
  ++serial_;
  ++served_;
  gone_ = nullptr;
  release_body();
  parser_.reset();
  if (!keep_alive_ || server_.draining_) return linger();
  if (!monitoring_) return next_request();
  next_after_monitor_ = true;
  phase_ = Phase::kIdle;
  ErrorCodeB ignored;
  socket_.cancel(ignored);
}

void Session::linger() {
  phase_ = Phase::kLingering;
  ErrorCodeB ignored;
  if (monitoring_) {  // everything was read: nothing can be lost by closing
    socket_.shutdown(tcp::socket::shutdown_both, ignored);
    return close();
  }
  socket_.shutdown(tcp::socket::shutdown_send, ignored);
  arm(kLingerSeconds);
  drop_.resize(16 << 10);
  linger_read();
}

void Session::linger_read() {
  socket_.async_read_some(asio::buffer(drop_),
                          [self = shared_from_this()](ErrorCodeB error, std::size_t n) {
                            if (self->phase_ == Phase::kClosed) return;
                            self->lingered_bytes_ += n;
                            if (error || self->lingered_bytes_ > kLingerBytes) return self->close();
                            self->linger_read();
                          });
}

// The client has gone, or is treated so.
void Session::leave() {
  if (phase_ == Phase::kClosed) return;
  bool answering = phase_ == Phase::kAnswering;
  if (answering) {
    server_.handler_.answered(request_.method, request_.path, 499,
                              std::chrono::duration<double>(SteadyClock::now() - started_).count());
    ++serial_;
  }
  std::function<void()> gone = std::move(gone_);
  gone_ = nullptr;
  close();
  if (answering && gone) gone();
}

void Session::close() {
  if (phase_ == Phase::kClosed) return;
  phase_ = Phase::kClosed;
  gone_ = nullptr;
  if (counted_) --server_.exchanges_;
  counted_ = false;
  release_body();
  queue_.clear();  // writing_ stays until its handler has run
  deadline_.cancel();
  ping_.cancel();
  ErrorCodeB ignored;
  socket_.close(ignored);
}

Status Server::open() {
  ErrorCodeB error;
  tcp::resolver resolver(context_);
  auto resolved =
      resolver.resolve(options_.host, std::to_string(options_.port), tcp::resolver::passive, error);
  if (error || resolved.empty())
    return Error{ErrorCode::kInvalidInput,
                 fmt::format("--host {}: {}", options_.host, error.message())};
  tcp::endpoint endpoint = *resolved.begin();
  acceptor_.open(endpoint.protocol(), error);
  if (!error) acceptor_.set_option(asio::socket_base::reuse_address(true), error);
  if (!error) acceptor_.bind(endpoint, error);
  if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
  if (error)
    return Error{ErrorCode::kIo, fmt::format("cannot listen on {}:{}: {}", options_.host,
                                             options_.port, error.message())};
  news_.assign(news_fd_ = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), error);
  if (error) return Error{ErrorCode::kIo, fmt::format("cannot make an event: {}", error.message())};
  port_ = acceptor_.local_endpoint().port();
  asio::post(acceptor_.get_executor(), [this] {
    accept();
    hear_news();
  });
  for (int i = 0; i < std::max(1, options_.io_threads); ++i)
    threads_.emplace_back([this] { context_.run(); });
  return Ok{};
}

void Server::accept() {
  acceptor_.async_accept(asio::make_strand(context_), [this](ErrorCodeB error, tcp::socket socket) {
    if (error == asio::error::operation_aborted || !acceptor_.is_open()) return;
    if (error) {  // out of descriptors: wait a little instead of spinning
      backoff_.expires_after(std::chrono::milliseconds(100));
      backoff_.async_wait([this](ErrorCodeB e) {
        if (!e) accept();
      });
      return;
    }
    bool over_limit = connections_ >= options_.max_connections;
    auto session = std::make_shared<Session>(*this, std::move(socket));
    add(session);
    asio::dispatch(session->executor(), [session, over_limit] { session->start(over_limit); });
    accept();
  });
}

void Server::hear_news() {
  news_.async_wait(asio::posix::stream_descriptor::wait_read, [this](ErrorCodeB error) {
    if (error) return;
    eventfd_t ignored = 0;
    ::eventfd_read(news_fd_, &ignored);  // before take(): who comes later writes again
    woken_.take([](std::shared_ptr<Exchange> exchange, std::shared_ptr<Wakeable> who) {
      exchange->post([who = std::move(who)] {
        WakeQueue::begin(*who);
        who->woken();
      });
    });
    hear_news();
  });
}

void Server::add(const std::shared_ptr<Session>& session) {
  std::lock_guard lock(mutex_);
  sessions_.insert(session.get());
}

void Server::remove(Session* session) {
  std::lock_guard lock(mutex_);
  sessions_.erase(session);
}

template <class F>
void Server::for_each_session(F f) {
  std::vector<std::shared_ptr<Session>> open;
  {
    std::lock_guard lock(mutex_);
    for (Session* session : sessions_)
      if (auto shared = session->weak_from_this().lock()) open.push_back(std::move(shared));
  }
  for (auto& session : open) asio::post(session->executor(), [session, f] { f(*session); });
}

void Server::drain() {
  draining_ = true;
  for_each_session([](Session& session) { session.close_if_idle(); });
}

void Server::stop() {
  if (stopped_) return;
  stopped_ = true;
  draining_ = true;
  asio::post(acceptor_.get_executor(), [this] {
    ErrorCodeB ignored;
    acceptor_.close(ignored);
    backoff_.cancel();
    news_.cancel(ignored);
  });
  for_each_session([](Session& session) { session.cut(); });
  // Sessions end on their own threads; a handler that never returns must not hang the exit.
  for (int i = 0; i < 200 && connections_ > 0; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  context_.stop();
  for (auto& thread : threads_) thread.join();
  threads_.clear();
}

}  // namespace

Result<std::unique_ptr<HttpServer>> HttpServer::start(const HttpServerOptions& options,
                                                      HttpHandler& handler) {
  auto server = std::make_unique<Server>(options, handler);
  if (Status status = server->open(); !status) return status.error();
  return std::unique_ptr<HttpServer>(std::move(server));
}

}  // namespace foretoken
