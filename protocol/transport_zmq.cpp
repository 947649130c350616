#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>
#include <thread>
#include <zmq.hpp>

#include "foretoken/protocol/transport.h"
#include "protocol/bytes.h"

namespace foretoken {
namespace {

using std::chrono::milliseconds;

// Options common to both ends. Heartbeats (ZMTP pings) notice a peer that vanished without closing
// its connection within 5 s; reconnecting backs off from 100 ms to 2 s.
void configure(zmq::socket_t& socket, int high_water_mark) {
  socket.set(zmq::sockopt::linger, 0);
  socket.set(zmq::sockopt::sndhwm, high_water_mark);
  socket.set(zmq::sockopt::rcvhwm, high_water_mark);
  socket.set(zmq::sockopt::immediate,
             true);  // queue to live connections only: no peer is a `false`
  socket.set(zmq::sockopt::heartbeat_ivl, 1000);
  socket.set(zmq::sockopt::heartbeat_timeout, 5000);
  socket.set(zmq::sockopt::heartbeat_ttl, 5000);
  socket.set(zmq::sockopt::reconnect_ivl, 100);
  socket.set(zmq::sockopt::reconnect_ivl_max, 2000);
  socket.set(zmq::sockopt::maxmsgsize, static_cast<std::int64_t>(kMaxMessageBytes));
}

zmq::const_buffer buffer_of(const CurveKey& key) { return zmq::buffer(key.data(), key.size()); }

// Keeps the door of a link with keys: answers libzmq's question whether a client's key may enter
// (ZAP, https://rfc.zeromq.org/spec/27), and counts the handshakes that failed, whatever the
// reason. One thread, asleep until somebody knocks. Lives as long as the last of the link's
// sockets.
class CurveAuthenticator {
 public:
  CurveAuthenticator(std::shared_ptr<zmq::context_t> context, std::vector<CurveKey> admitted,
                     bool server)
      : context_(std::move(context)),
        admitted_(std::move(admitted)),
        server_(server),
        door_(*context_, zmq::socket_type::rep),
        stop_in_(*context_, zmq::socket_type::pair),
        stop_out_(*context_, zmq::socket_type::pair) {
    door_.set(zmq::sockopt::linger, 0);
    if (server) door_.bind("inproc://zeromq.zap.01");
    stop_in_.bind("inproc://curve_authenticator.stop");
    stop_out_.connect("inproc://curve_authenticator.stop");
  }
  ~CurveAuthenticator() {
    if (!thread_.joinable()) return;
    stop_out_.send(zmq::message_t(), zmq::send_flags::dontwait);
    thread_.join();
  }
  // Before start(). The flag is set when a handshake of this socket failed.
  std::shared_ptr<std::atomic<bool>> watch(zmq::socket_t& socket) {
    const std::string at = fmt::format("inproc://curve_authenticator.{}", monitors_.size());
    if (zmq_socket_monitor(socket.handle(), at.c_str(),
                           ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL |
                               ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                               ZMQ_EVENT_HANDSHAKE_FAILED_AUTH) != 0) {
      throw zmq::error_t();
    }
    monitors_.emplace_back(*context_, zmq::socket_type::pair).connect(at);
    return failed_.emplace_back(std::make_shared<std::atomic<bool>>(false));
  }
  void start() {
    thread_ = std::thread([this] { run(); });
  }
  std::shared_ptr<const std::atomic<std::int64_t>> refused() const { return refused_; }

 private:
  void run() {
    std::vector<zmq::pollitem_t> items = {{stop_in_.handle(), 0, ZMQ_POLLIN, 0},
                                          {door_.handle(), 0, ZMQ_POLLIN, 0}};
    for (zmq::socket_t& monitor : monitors_) items.push_back({monitor.handle(), 0, ZMQ_POLLIN, 0});
    for (;;) {
      try {
        zmq::poll(items.data(), items.size(), milliseconds(-1));
        if (items[0].revents) return;
        if (items[1].revents) answer();
        for (std::size_t i = 2; i < items.size(); ++i) {
          if (items[i].revents && handshake_failed(monitors_[i - 2])) {
            failed_[i - 2]->store(true, std::memory_order_release);
          }
        }
      } catch (const zmq::error_t& error) {
        if (error.num() == ETERM) return;  // else a signal, or a peer that broke a request off
      }
    }
  }

  static std::vector<zmq::message_t> receive(zmq::socket_t& socket) {
    std::vector<zmq::message_t> parts;
    do {
      parts.emplace_back();
      if (!socket.recv(parts.back(), zmq::recv_flags::dontwait)) return {};
    } while (parts.back().more());
    return parts;
  }

  // Frames: version, request id, domain, address, identity, mechanism, credentials.
  void answer() {
    const auto request = receive(door_);
    if (request.empty()) return;
    CurveKey key{};
    bool admitted = request.size() == 7 && request[5].to_string_view() == "CURVE" &&
                    request[6].size() == key.size();
    if (admitted) {
      std::memcpy(key.data(), request[6].data(), key.size());
      admitted = std::find(admitted_.begin(), admitted_.end(), key) != admitted_.end();
    }
    const std::string_view id = request.size() > 1 ? request[1].to_string_view() : "";
    const std::string_view answer[] = {
        "1.0", id, admitted ? "200" : "400", admitted ? "OK" : "not a trusted key", "", ""};
    for (std::size_t i = 0; i < std::size(answer); ++i) {
      door_.send(zmq::buffer(answer[i]),
                 i + 1 < std::size(answer) ? zmq::send_flags::sndmore : zmq::send_flags::none);
    }
  }

  bool handshake_failed(zmq::socket_t& monitor) {
    const auto event = receive(monitor);  // u16 event and u32 value; the endpoint
    if (event.empty() || event[0].size() < 2) return false;
    const auto kind = load<std::uint16_t>(static_cast<const std::byte*>(event[0].data()));
    if (kind == ZMQ_EVENT_MONITOR_STOPPED) return false;
    const std::int64_t n = refused_->fetch_add(1, std::memory_order_relaxed) + 1;
    if ((n & (n - 1)) != 0) return true;  // a stranger that tries for ever cannot fill the log
    if (server_) {
      spdlog::warn("link: refused a peer without a trusted key ({} so far)", n);
    } else {
      spdlog::warn(
          "link: the server did not accept this trainer's key, or is not the server that is "
          "trusted here ({} attempts so far; see foretoken keys)",
          n);
    }
    return true;
  }

  std::shared_ptr<zmq::context_t> context_;  // outlives the sockets
  const std::vector<CurveKey> admitted_;
  const bool server_;
  zmq::socket_t door_, stop_in_, stop_out_;
  std::vector<zmq::socket_t> monitors_;
  std::vector<std::shared_ptr<std::atomic<bool>>> failed_;
  std::shared_ptr<std::atomic<std::int64_t>> refused_ =
      std::make_shared<std::atomic<std::int64_t>>(0);
  std::thread thread_;
};

// libzmq never comes back by itself to a server that refused its key; but the server may be told to
// trust it, and start again. The socket's own thread tries again now and then.
class Retry {
 public:
  Retry() = default;
  Retry(std::string endpoint, std::shared_ptr<std::atomic<bool>> failed)
      : endpoint_(std::move(endpoint)), failed_(std::move(failed)) {}
  void turn(zmq::socket_t& socket) {
    if (!failed_ || !failed_->load(std::memory_order_acquire)) return;
    const auto now = std::chrono::steady_clock::now();
    if (now < next_) return;
    next_ = now + kInterval;
    failed_->store(false, std::memory_order_relaxed);
    zmq_disconnect(socket.handle(), endpoint_.c_str());  // in vain where libzmq gave up already
    zmq_connect(socket.handle(), endpoint_.c_str());
  }

 private:
  static constexpr std::chrono::seconds kInterval{2};
  std::string endpoint_;
  std::shared_ptr<std::atomic<bool>> failed_;
  std::chrono::steady_clock::time_point next_{};
};

// A socket with what it needs to live: its context, the door's keeper, its way back.
struct Channel {
  Channel(std::shared_ptr<zmq::context_t> context_in, zmq::socket_type type, int high_water_mark)
      : context(std::move(context_in)), socket(*context, type) {
    configure(socket, high_water_mark);
  }
  std::shared_ptr<zmq::context_t> context;  // outlives the socket
  std::shared_ptr<CurveAuthenticator> curve_authenticator;
  Retry retry;
  zmq::socket_t socket;
};

class ZmqSender final : public Sender {
 public:
  ZmqSender(std::shared_ptr<zmq::context_t> context, int high_water_mark)
      : channel(std::move(context), zmq::socket_type::push, high_water_mark) {}

  bool try_send(Message message) override {
    try {
      channel.retry.turn(channel.socket);
      for (std::size_t i = 0; i < message.size(); ++i) {
        // Handed over without a copy: ZeroMQ frees the frame from its own thread once it is sent.
        auto* frame = new Frame(std::move(message[i]));
        zmq::message_t part(
            frame->data(), frame->size(),
            [](void*, void* hint) { delete static_cast<Frame*>(hint); }, frame);
        const auto more = i + 1 < message.size() ? zmq::send_flags::sndmore : zmq::send_flags::none;
        // A multipart message is atomic: once its first part is taken, the rest is.
        if (!channel.socket.send(part, zmq::send_flags::dontwait | more)) return false;
      }
      return true;
    } catch (const zmq::error_t&) {
      return false;
    }
  }
  bool ready() override {
    try {
      channel.retry.turn(channel.socket);
      return (channel.socket.get(zmq::sockopt::events) & ZMQ_POLLOUT) != 0;
    } catch (const zmq::error_t&) {
      return false;
    }
  }

  Channel channel;
};

class ZmqReceiver final : public Receiver {
 public:
  ZmqReceiver(std::shared_ptr<zmq::context_t> context, int high_water_mark)
      : channel(std::move(context), zmq::socket_type::pull, high_water_mark) {}

  std::optional<Message> try_receive() override {
    try {
      channel.retry.turn(channel.socket);
      Message message;
      std::size_t bytes = 0;
      bool too_large = false;
      for (bool more = true; more;) {
        zmq::message_t part;
        if (!channel.socket.recv(part, zmq::recv_flags::dontwait)) return std::nullopt;
        more = part.more();
        bytes += part.size();
        // A message over the limits is read to its end and handed on without its frames, so that it
        // is refused, and counted, where every other malformed message is.
        too_large = too_large || message.size() > kMaxFrames || bytes > kMaxMessageBytes;
        if (too_large) {
          message.clear();
          continue;
        }
        const auto* data = static_cast<const std::byte*>(part.data());
        message.emplace_back(data, data + part.size());
      }
      return message;
    } catch (const zmq::error_t&) {
      return std::nullopt;
    }
  }

  bool wait(milliseconds at_most) override {
    try {
      zmq::pollitem_t item{channel.socket.handle(), 0, ZMQ_POLLIN, 0};
      return zmq::poll(&item, 1, at_most) > 0;
    } catch (const zmq::error_t&) {  // EINTR: a signal; the caller looks at its stop flag
      return false;
    }
  }

  Channel channel;
};

enum class Role { kServer, kTrainer };

void secure(Channel& channel, const LinkKeys& keys, Role role,
            const std::shared_ptr<CurveAuthenticator>& curve_authenticator,
            const std::string& endpoint) {
  if (role == Role::kServer) {
    channel.socket.set(zmq::sockopt::curve_server, true);
    // The curve_authenticator's door is bound before these sockets are and outlives them: libzmq
    // would let everybody in who knows the server's key if there were none.
    channel.socket.set(zmq::sockopt::zap_domain, "foretoken");
  } else {
    channel.socket.set(zmq::sockopt::curve_serverkey, buffer_of(keys.peers.front()));
    channel.socket.set(zmq::sockopt::curve_publickey, buffer_of(keys.own.public_key));
  }
  channel.socket.set(zmq::sockopt::curve_secretkey, buffer_of(keys.own.secret));
  auto failed = curve_authenticator->watch(channel.socket);
  if (role == Role::kTrainer) channel.retry = {endpoint, std::move(failed)};
  channel.curve_authenticator = curve_authenticator;
}

// Binds or connects. The endpoint as bound.
std::string attach(Channel& channel, const std::string& endpoint, Role role) {
  if (role == Role::kServer) {
    channel.socket.bind(endpoint);
  } else {
    channel.socket.connect(endpoint);
  }
  return channel.socket.get(zmq::sockopt::last_endpoint);
}

// The server sends on `traces` and the trainer on `weights`.
Result<Link> open_link(const LinkEndpoints& endpoints, Role role) {
  const std::string& out = role == Role::kServer ? endpoints.traces : endpoints.weights;
  const std::string& in = role == Role::kServer ? endpoints.weights : endpoints.traces;
  const char* verb = role == Role::kServer ? "bind" : "connect";
  const std::string* attaching = &out;
  try {
    auto context = std::make_shared<zmq::context_t>(1);
    auto sender = std::make_unique<ZmqSender>(context, endpoints.high_water_mark);
    auto receiver = std::make_unique<ZmqReceiver>(context, endpoints.high_water_mark);
    Link link;
    if (endpoints.keys) {
      if (role == Role::kTrainer && endpoints.keys->peers.size() != 1) {
        return Error{ErrorCode::kInvalidInput, "link: a trainer's keys name exactly one server"};
      }
      const auto curve_authenticator = std::make_shared<CurveAuthenticator>(
          context, endpoints.keys->peers, role == Role::kServer);
      secure(sender->channel, *endpoints.keys, role, curve_authenticator, out);
      secure(receiver->channel, *endpoints.keys, role, curve_authenticator, in);
      curve_authenticator->start();
      link.peers_refused = curve_authenticator->refused();
    }
    link.endpoints = endpoints;
    (role == Role::kServer ? link.endpoints.traces : link.endpoints.weights) =
        attach(sender->channel, out, role);
    attaching = &in;
    (role == Role::kServer ? link.endpoints.weights : link.endpoints.traces) =
        attach(receiver->channel, in, role);
    link.sender = std::move(sender);
    link.receiver = std::move(receiver);
    return link;
  } catch (const zmq::error_t& error) {
    return Error{ErrorCode::kIo, fmt::format("cannot {} {}: {}", verb, *attaching, error.what())};
  }
}

}  // namespace

Result<Link> open_server_link(const LinkEndpoints& endpoints) {
  return open_link(endpoints, Role::kServer);
}
Result<Link> open_trainer_link(const LinkEndpoints& endpoints) {
  return open_link(endpoints, Role::kTrainer);
}

}  // namespace foretoken
