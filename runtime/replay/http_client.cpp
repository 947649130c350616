#include "runtime/replay/http_client.h"

#include <fmt/format.h>
#include <poll.h>

#include <array>
#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <sstream>

namespace foretoken {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using tcp = asio::ip::tcp;

// How often a wait looks at the stop flag.
constexpr int kStopPollMs = 100;

}  // namespace

Result<ServerUrl> ServerUrl::parse(std::string_view url) {
  const auto wrong = [&](std::string_view why) {
    return Error{ErrorCode::kInvalidInput,
                 fmt::format("--url {}: {}; wanted http://host:port", url, why)};
  };
  if (url.starts_with("https://")) return wrong("TLS is not spoken here");
  if (!url.starts_with("http://")) return wrong("not an http:// address");
  std::string_view rest = url.substr(7);
  ServerUrl out;
  if (const auto slash = rest.find('/'); slash != std::string_view::npos) {
    out.prefix = rest.substr(slash);
    rest = rest.substr(0, slash);
    while (!out.prefix.empty() && out.prefix.back() == '/') out.prefix.pop_back();
    if (out.prefix.ends_with("/v1")) out.prefix.resize(out.prefix.size() - 3);
  }
  // [::1]:8080 or host:8080
  const auto bracket = rest.rfind(']');
  const auto colon = rest.rfind(':');
  if (colon != std::string_view::npos && (bracket == std::string_view::npos || colon > bracket)) {
    out.port = rest.substr(colon + 1);
    rest = rest.substr(0, colon);
  } else {
    out.port = "80";
  }
  if (rest.size() > 2 && rest.front() == '[' && rest.back() == ']')
    rest = rest.substr(1, rest.size() - 2);
  out.host = rest;
  if (out.host.empty()) return wrong("no host");
  if (out.port.empty() || out.port.find_first_not_of("0123456789") != std::string::npos ||
      out.port.size() > 5)
    return wrong("the port is not a number");
  return out;
}

struct HttpClient::Impl {
  Impl(ServerUrl url, std::string api_key, double timeout_s, const std::atomic<bool>* stop)
      : url(std::move(url)), api_key(std::move(api_key)), timeout_s(timeout_s), stop(stop) {}

  ServerUrl url;
  std::string api_key;
  double timeout_s;
  const std::atomic<bool>* stop;
  asio::io_context io;
  tcp::socket socket{io};
  beast::flat_buffer buffer;

  bool stopped() const { return stop && stop->load(std::memory_order_relaxed); }

  void close() {
    beast::error_code ignored;
    socket.close(ignored);
    buffer.clear();
  }

  // Waits until the socket can be read or written. The socket is non-blocking, so Asio's
  // synchronous calls return would_block and the waiting, with its time limit and stop flag, is
  // done here.
  beast::error_code wait(short events) {
    const auto deadline =
        std::chrono::steady_clock::now() + std::chrono::duration<double>(timeout_s);
    while (true) {
      if (stopped()) return asio::error::operation_aborted;
      pollfd fd{socket.native_handle(), events, 0};
      const int n = ::poll(&fd, 1, kStopPollMs);
      if (n > 0) return {};
      if (n < 0 && errno != EINTR) return {errno, boost::system::system_category()};
      if (std::chrono::steady_clock::now() > deadline) return asio::error::timed_out;
    }
  }

  beast::error_code connect() {
    close();
    beast::error_code ec;
    tcp::resolver resolver(io);
    const auto addresses = resolver.resolve(url.host, url.port, ec);
    if (ec) return ec;
    asio::connect(socket, addresses, ec);
    if (ec) return ec;
    socket.set_option(tcp::no_delay(true), ec);
    socket.non_blocking(true, ec);
    return ec;
  }

  beast::error_code write(std::string_view bytes) {
    while (!bytes.empty()) {
      beast::error_code ec;
      const std::size_t n = socket.write_some(asio::buffer(bytes.data(), bytes.size()), ec);
      bytes.remove_prefix(n);
      if (ec == asio::error::would_block) ec = wait(POLLOUT);
      if (ec) return ec;
    }
    return {};
  }

  std::string request_bytes(const std::string& path, const std::string* body) const {
    http::request<http::string_body> request(body ? http::verb::post : http::verb::get,
                                             url.prefix + path, 11);
    request.set(http::field::host, url.host + ":" + url.port);
    request.set(http::field::user_agent, "foretoken-replay");
    request.set(http::field::accept, "*/*");
    if (!api_key.empty()) request.set(http::field::authorization, "Bearer " + api_key);
    if (body) {
      request.set(http::field::content_type, "application/json");
      request.body() = *body;
    }
    request.prepare_payload();
    std::ostringstream bytes;
    bytes << request;
    return std::move(bytes).str();
  }

  // received: whether any byte of the answer came (then nothing may be sent again).
  beast::error_code exchange(const std::string& bytes,
                             const std::function<void(std::string_view)>& on_data,
                             ClientResponse& response, bool& received) {
    if (beast::error_code ec = write(bytes)) return ec;
    http::response_parser<http::buffer_body> parser;
    parser.body_limit(boost::none);
    std::array<char, 16384> piece;
    bool header_seen = false;
    while (!parser.is_done()) {
      parser.get().body().data = piece.data();
      parser.get().body().size = piece.size();
      beast::error_code ec;
      http::read_some(socket, buffer, parser, ec);
      if (buffer.size() > 0 || parser.got_some()) received = true;
      if (!header_seen && parser.is_header_done()) {
        header_seen = true;
        response.status = static_cast<int>(parser.get().result_int());
        response.content_type = std::string(parser.get()[http::field::content_type]);
      }
      const std::size_t n = header_seen ? piece.size() - parser.get().body().size : 0;
      if (n > 0) on_data({piece.data(), n});
      if (ec == http::error::need_buffer) continue;
      if (ec == asio::error::would_block) ec = wait(POLLIN);
      if (ec) return ec;
    }
    if (!parser.keep_alive()) close();
    return {};
  }
};

HttpClient::HttpClient(ServerUrl url, std::string api_key, double timeout_s,
                       const std::atomic<bool>* stop)
    : impl_(new Impl(std::move(url), std::move(api_key), timeout_s, stop)) {}
HttpClient::~HttpClient() = default;

Result<ClientResponse> HttpClient::call(const std::string& path, const std::string* body,
                                        const std::function<void(std::string_view)>& on_data) {
  Impl& c = *impl_;
  const std::string bytes = c.request_bytes(path, body);
  for (int attempt = 0;; ++attempt) {
    const bool reused = c.socket.is_open();
    ClientResponse response;
    bool received = false;
    beast::error_code ec;
    if (!reused) ec = c.connect();
    if (!ec) ec = c.exchange(bytes, on_data, response, received);
    if (!ec) return response;
    c.close();
    if (reused && !received && attempt == 0 && ec != asio::error::timed_out && !c.stopped())
      continue;
    if (ec == asio::error::timed_out)
      return Error{ErrorCode::kUnavailable,
                   fmt::format("no byte from {}:{} for {} s", c.url.host, c.url.port, c.timeout_s)};
    const bool garbled = std::string_view(ec.category().name()) == "beast.http" &&
                         ec != http::error::end_of_stream && ec != http::error::partial_message;
    return Error{garbled ? ErrorCode::kInvalidInput : ErrorCode::kUnavailable,
                 fmt::format("{}:{}: {}", c.url.host, c.url.port, ec.message())};
  }
}

}  // namespace foretoken
