#include "tests/support/memory_network.h"

#include <algorithm>
#include <vector>

namespace foretoken {

struct MemoryNetwork::State {
  struct InFlight {
    std::chrono::nanoseconds due;
    Message message;
  };
  // Channel 0: traces (server to trainer); channel 1: weights (trainer to server).
  struct Channel {
    std::vector<InFlight> queue;  // in order of arrival
    std::chrono::nanoseconds latest{
        0};  // due time of the newest, for channels that keep their order
    std::size_t high_water_mark = 1000;
  };

  explicit State(const ManualClock& clock_in, std::uint64_t seed) : clock(clock_in), random(seed) {}

  const ManualClock& clock;
  std::mt19937_64 random;
  MemoryFaults faults;
  Channel channels[2];
  std::uint64_t server_life = 0, trainer_life = 0;  // 0: down; else which start is alive
  std::uint64_t lives = 0;

  double uniform() { return double(random() >> 11) * 0x1p-53; }

  void deliver(Channel& channel, Message message) {
    const auto span = (faults.delay_max - faults.delay_min).count();
    const auto delay =
        faults.delay_min +
        std::chrono::milliseconds(span > 0 ? std::int64_t(random() % std::uint64_t(span + 1)) : 0);
    auto due = clock.monotonic() + delay;
    if (!faults.reorder) due = std::max(due, channel.latest);
    channel.latest = std::max(due, channel.latest);
    const auto at =
        std::upper_bound(channel.queue.begin(), channel.queue.end(), due,
                         [](auto time, const InFlight& other) { return time < other.due; });
    channel.queue.insert(at, {due, std::move(message)});
  }

  bool has_room(int index, bool peer_alive) const {
    return peer_alive && channels[index].queue.size() < channels[index].high_water_mark;
  }

  bool send(int index, bool peer_alive, Message message) {
    if (!has_room(index, peer_alive)) return false;
    Channel& channel = channels[index];
    if (uniform() < faults.loss) return true;
    if (uniform() < faults.corrupt && !message.empty()) {
      Frame& frame = message[random() % message.size()];
      if (!frame.empty()) frame[random() % frame.size()] ^= std::byte(1u << (random() % 8));
    }
    if (uniform() < faults.duplicate) deliver(channel, message);
    deliver(channel, std::move(message));
    return true;
  }

  std::optional<Message> receive(int index) {
    Channel& channel = channels[index];
    if (channel.queue.empty() || channel.queue.front().due > clock.monotonic()) return std::nullopt;
    Message message = std::move(channel.queue.front().message);
    channel.queue.erase(channel.queue.begin());
    return message;
  }

  void drop_in_flight() {
    for (Channel& channel : channels) {
      channel.queue.clear();
      channel.latest = {};
    }
  }
};

namespace {

class MemorySender final : public Sender {
 public:
  MemorySender(std::shared_ptr<MemoryNetwork::State> state, bool server)
      : state_(std::move(state)),
        server_(server),
        life_(server ? state_->server_life : state_->trainer_life) {}
  bool try_send(Message message) override {
    return alive() && state_->send(server_ ? 0 : 1, peer_alive(), std::move(message));
  }
  bool ready() override { return alive() && state_->has_room(server_ ? 0 : 1, peer_alive()); }

 private:
  bool alive() const { return life_ == (server_ ? state_->server_life : state_->trainer_life); }
  bool peer_alive() const { return (server_ ? state_->trainer_life : state_->server_life) != 0; }

  std::shared_ptr<MemoryNetwork::State> state_;
  bool server_;
  std::uint64_t life_;
};

class MemoryReceiver final : public Receiver {
 public:
  MemoryReceiver(std::shared_ptr<MemoryNetwork::State> state, bool server)
      : state_(std::move(state)),
        server_(server),
        life_(server ? state_->server_life : state_->trainer_life) {}
  std::optional<Message> try_receive() override {
    const std::uint64_t own = server_ ? state_->server_life : state_->trainer_life;
    return own == life_ ? state_->receive(server_ ? 1 : 0) : std::nullopt;
  }
  bool wait(std::chrono::milliseconds) override {  // time is the test's: never sleeps
    const auto& queue = state_->channels[server_ ? 1 : 0].queue;
    return !queue.empty() && queue.front().due <= state_->clock.monotonic();
  }

 private:
  std::shared_ptr<MemoryNetwork::State> state_;
  bool server_;
  std::uint64_t life_;
};

}  // namespace

MemoryNetwork::MemoryNetwork(const ManualClock& clock, std::uint64_t seed)
    : state_(std::make_shared<State>(clock, seed)) {}
MemoryNetwork::~MemoryNetwork() = default;

Link MemoryNetwork::open_server(int high_water_mark) {
  state_->server_life = ++state_->lives;
  state_->channels[0].high_water_mark = std::size_t(high_water_mark);
  return {std::make_unique<MemorySender>(state_, true),
          std::make_unique<MemoryReceiver>(state_, true),
          {"memory:traces", "memory:weights", high_water_mark}};
}

Link MemoryNetwork::open_trainer(int high_water_mark) {
  state_->trainer_life = ++state_->lives;
  state_->channels[1].high_water_mark = std::size_t(high_water_mark);
  return {std::make_unique<MemorySender>(state_, false),
          std::make_unique<MemoryReceiver>(state_, false),
          {"memory:traces", "memory:weights", high_water_mark}};
}

void MemoryNetwork::crash_server() {
  state_->server_life = 0;
  state_->drop_in_flight();
}

void MemoryNetwork::crash_trainer() {
  state_->trainer_life = 0;
  state_->drop_in_flight();
}

void MemoryNetwork::set_faults(const MemoryFaults& faults) { state_->faults = faults; }

void MemoryNetwork::inject_to_server(Message message) {
  State::Channel& channel = state_->channels[1];
  if (state_->server_life != 0 && channel.queue.size() < channel.high_water_mark)
    state_->deliver(channel, std::move(message));
}

std::size_t MemoryNetwork::in_flight() const {
  return state_->channels[0].queue.size() + state_->channels[1].queue.size();
}

}  // namespace foretoken
