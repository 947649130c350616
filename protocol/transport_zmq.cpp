#include <fmt/format.h>
#include <zmq.hpp>

#include "foretoken/protocol/transport.h"

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

class ZmqSender final : public Sender {
 public:
  ZmqSender(std::shared_ptr<zmq::context_t> context, int high_water_mark)
      : context_(std::move(context)), socket_(*context_, zmq::socket_type::push) {
    configure(socket_, high_water_mark);
  }
  zmq::socket_t& socket() { return socket_; }

  bool try_send(Message message) override {
    try {
      for (std::size_t i = 0; i < message.size(); ++i) {
        // Handed over without a copy: ZeroMQ frees the frame from its own thread once it is sent.
        auto* frame = new Frame(std::move(message[i]));
        zmq::message_t part(
            frame->data(), frame->size(),
            [](void*, void* hint) { delete static_cast<Frame*>(hint); }, frame);
        const auto more = i + 1 < message.size() ? zmq::send_flags::sndmore : zmq::send_flags::none;
        // A multipart message is atomic: once its first part is taken, the rest is.
        if (!socket_.send(part, zmq::send_flags::dontwait | more)) return false;
      }
      return true;
    } catch (const zmq::error_t&) {
      return false;
    }
  }

 private:
  std::shared_ptr<zmq::context_t> context_;  // outlives the socket
  zmq::socket_t socket_;
};

class ZmqReceiver final : public Receiver {
 public:
  ZmqReceiver(std::shared_ptr<zmq::context_t> context, int high_water_mark)
      : context_(std::move(context)), socket_(*context_, zmq::socket_type::pull) {
    configure(socket_, high_water_mark);
  }
  zmq::socket_t& socket() { return socket_; }

  std::optional<Message> try_receive() override {
    try {
      Message message;
      std::size_t bytes = 0;
      bool too_large = false;
      for (bool more = true; more;) {
        zmq::message_t part;
        if (!socket_.recv(part, zmq::recv_flags::dontwait)) return std::nullopt;
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
      zmq::pollitem_t item{socket_.handle(), 0, ZMQ_POLLIN, 0};
      return zmq::poll(&item, 1, at_most) > 0;
    } catch (const zmq::error_t&) {  // EINTR: a signal; the caller looks at its stop flag
      return false;
    }
  }

 private:
  std::shared_ptr<zmq::context_t> context_;
  zmq::socket_t socket_;
};

enum class Role { kServer, kTrainer };

void attach(zmq::socket_t& socket, const std::string& endpoint, Role role) {
  if (role == Role::kServer) {
    socket.bind(endpoint);
  } else {
    socket.connect(endpoint);
  }
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
    attach(sender->socket(), out, role);
    attaching = &in;
    attach(receiver->socket(), in, role);
    Link link;
    link.endpoints = endpoints;
    (role == Role::kServer ? link.endpoints.traces : link.endpoints.weights) =
        sender->socket().get(zmq::sockopt::last_endpoint);
    (role == Role::kServer ? link.endpoints.weights : link.endpoints.traces) =
        receiver->socket().get(zmq::sockopt::last_endpoint);
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
