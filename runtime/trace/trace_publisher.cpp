#include "runtime/trace/trace_publisher.h"

#include <malloc.h>
#include <spdlog/spdlog.h>

namespace foretoken {
namespace {

// A request's arrays are some megabytes that grow token by token and are freed when it has been
// sent. Given back to the kernel they return as fresh pages, a fault and 4 KiB of zeros each, on
// the engine's thread; so the allocator keeps them (of the whole process: it has no other way).
void keep_freed_memory() {
  static const bool done = [] {
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 64 << 20);
    return true;
  }();
  static_cast<void>(done);
}

}  // namespace

TracePublisher::TracePublisher(std::uint64_t server_run, std::size_t ring_capacity,
                               std::size_t ring_bytes, std::unique_ptr<TraceSegmentWriter> segments)
    : server_run_(server_run), ring_(ring_capacity, ring_bytes), segments_(std::move(segments)) {
  keep_freed_memory();
}

void TracePublisher::push(std::unique_ptr<RequestTrace> trace) noexcept {
  if (trace && !ring_.try_push(std::move(trace))) count(kRingFull);
}

std::map<std::string, std::int64_t> TracePublisher::dropped() const {
  constexpr const char* kNames[kReasons] = {"ring_full", "hwm", "no_trainer", "disk", "opted_out"};
  std::map<std::string, std::int64_t> counts;
  for (int reason = 0; reason < kReasons; ++reason) {
    const auto n = dropped_[std::size_t(reason)].load(std::memory_order_relaxed);
    if (n > 0) counts[kNames[reason]] = n;
  }
  return counts;
}

std::int64_t TracePublisher::dropped_total() const {
  std::int64_t total = 0;
  for (const auto& n : dropped_) total += n.load(std::memory_order_relaxed);
  return total;
}

void TracePublisher::pump(Sender& sender, bool trainer_connected,
                          const std::function<void(std::unique_ptr<RequestTrace>)>& sent) {
  while (std::unique_ptr<RequestTrace> trace = ring_.try_pop()) {
    trace->server_run = server_run_;
    // Encoding costs more than sending: not for nobody.
    const bool wanted = segments_ || sender.ready();
    Message message = wanted ? serialize(*trace) : Message();
    if (!sent) trace.reset();
    if (segments_) {
      if (auto appended = segments_->append(message); !appended) {
        count(kDisk);
        if (!disk_warned_) spdlog::warn("traces are not stored: {}", appended.error().message);
        disk_warned_ = true;
      } else {
        disk_warned_ = false;
      }
    }
    if (wanted && sender.try_send(std::move(message))) {
      sent_.fetch_add(1, std::memory_order_relaxed);
    } else {
      count(trainer_connected ? kHighWaterMark : kNoTrainer);
    }
    if (sent) sent(std::move(trace));
  }
}

}  // namespace foretoken
