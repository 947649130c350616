// The in-memory twin of the ZeroMQ link, for deterministic simulation: an injected clock, and
// faults drawn from one seed. Single-threaded: the test calls the state machines in turn and
// advances the clock. Semantics are those of the sockets: bounded, atomic messages, a send without
// a live peer is a `false`, what is in flight to or from a process that crashes is lost. Reordering
// and duplicates, which ZeroMQ does not do, can be switched on: the protocol holds without the
// order.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <random>

#include "foretoken/protocol/transport.h"

namespace foretoken {

struct MemoryFaults {
  double loss = 0;       // probability that a message disappears
  double duplicate = 0;  // probability that it arrives twice
  double corrupt = 0;    // probability that one bit of it flips
  std::chrono::milliseconds delay_min{0}, delay_max{0};
  bool reorder = false;  // false: a message never overtakes another on its channel
};

class MemoryNetwork {
 public:
  MemoryNetwork(const ManualClock& clock, std::uint64_t seed);
  ~MemoryNetwork();

  // Opening an end again (after crash_*) is a restart of its process. The network outlives its
  // links.
  Link open_server(int high_water_mark = 1000);
  Link open_trainer(int high_water_mark = 1000);
  void crash_server();  // its links become dead: sends fail, nothing is received
  void crash_trainer();
  void set_faults(const MemoryFaults& faults);
  // A message by somebody else on the trainer's end; lost where no server is up or its queue is
  // full. No faults happen to it.
  void inject_to_server(Message message);
  std::size_t in_flight() const;

  struct State;

 private:
  std::shared_ptr<State> state_;
};

}  // namespace foretoken
