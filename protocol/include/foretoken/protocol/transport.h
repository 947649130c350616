// How messages move between server and trainer. State machines see only this interface, so that a
// simulation can stand in for ZeroMQ (tests/support/memory_network.h: an injected clock, loss,
// delay, reordering, crashes). Calls never block; a full queue is a `false`, counted by the caller.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "foretoken/protocol/keys.h"
#include "foretoken/protocol/result.h"
#include "foretoken/protocol/trace.h"

namespace foretoken {

class Clock {
 public:
  virtual ~Clock() = default;
  virtual std::chrono::nanoseconds monotonic() const = 0;
  virtual std::int64_t unix_ms() const = 0;
};
const Clock& system_clock();
// A clock that stands still but for its owner: of a recording, of a simulation.
class ManualClock final : public Clock {
 public:
  std::chrono::nanoseconds monotonic() const override { return now_; }
  std::int64_t unix_ms() const override { return unix_ms_; }
  void advance(std::chrono::nanoseconds by) {
    now_ += by;
    unix_ms_ += std::chrono::duration_cast<std::chrono::milliseconds>(by).count();
  }
  void jump_wall_clock(std::int64_t by_ms) { unix_ms_ += by_ms; }  // monotonic() is not moved

 private:
  std::chrono::nanoseconds now_{0};
  std::int64_t unix_ms_ = 1'700'000'000'000;
};
// As figures count it.
inline double ms_of(std::chrono::nanoseconds time) {
  return std::chrono::duration<double, std::milli>(time).count();
}
inline double seconds_of(std::chrono::nanoseconds time) {
  return std::chrono::duration<double>(time).count();
}

// One direction of a channel. A Sender and a Receiver are each used by one thread.
class Sender {
 public:
  virtual ~Sender() = default;
  virtual bool try_send(Message message) = 0;  // false: high-water mark reached or no peer; dropped
  virtual bool ready() { return true; }        // false: a message sent now would be dropped
};
class Receiver {
 public:
  virtual ~Receiver() = default;
  virtual std::optional<Message> try_receive() = 0;
  virtual bool wait(std::chrono::milliseconds at_most) = 0;  // true: something may be there
};

// endpoint: "tcp://127.0.0.1:5555" or "ipc:///path". The server binds, the trainer connects.
struct LinkEndpoints {
  std::string traces;   // server PUSH -> trainer PULL
  std::string weights;  // trainer PUSH -> server PULL
  int high_water_mark = 1000;
  // With keys the link is CURVE: encrypted, and only the peers in them get in; everybody else is
  // refused and counted. Without: for tests inside one process.
  std::optional<LinkKeys> keys = std::nullopt;
};
struct Link {
  std::unique_ptr<Sender> sender;
  std::unique_ptr<Receiver> receiver;
  LinkEndpoints endpoints;  // as bound: "tcp://127.0.0.1:*" has its port
  // Attempts to connect that ended in the handshake: strangers at a server, a server that does not
  // know this trainer. Any thread; null where there are no keys.
  std::shared_ptr<const std::atomic<std::int64_t>> peers_refused;
};
// They reconnect by themselves; a message in flight when a peer dies may be lost, never torn or
// doubled.
Result<Link> open_server_link(const LinkEndpoints& endpoints);
Result<Link> open_trainer_link(const LinkEndpoints& endpoints);

}  // namespace foretoken
