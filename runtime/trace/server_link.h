// The server's end of the link to the trainer: one thread that sends traces and hellos and receives
// weights. The engine meets it in the ring of TracePublisher alone, so nothing here can hold up a
// round. Lifetime: create -> sink() into Engine::create -> start(on_table) -> ... -> stop() ->
// ~Engine -> ~ServerLink.
#pragma once

#include <atomic>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "foretoken/protocol/control.h"
#include "foretoken/protocol/transport.h"
#include "runtime/observe/stats.h"
#include "runtime/trace/trace_publisher.h"
#include "runtime/trace/weights_receiver.h"

namespace foretoken {

// What the trainer is told of how the engine is doing. Called on the link thread.
struct ServerActivity {
  std::uint32_t requests_running = 0;
  float busy = 0;               // share of the last second in which the engine ran rounds, 0 to 1
  std::vector<float> round_ms;  // by rows, from 1 on; empty: not measured yet
  float head_start_ms = 0, head_step_ms = 0;  // 0: not measured
};

struct ServerLinkOptions {
  // Both empty: no trainer is expected; the state folder's version is served, traces go to
  // trace_dir or nowhere. Traces wait in memory up to high_water_mark messages while a connected
  // trainer does not read.
  LinkEndpoints endpoints{"", "", 200};
  ModelFingerprint model_fingerprint{};
  TrustedSigners trusted_signers;    // whose bundles are served; empty: nobody's
  std::filesystem::path state_root;  // empty: nothing is kept
  std::filesystem::path trace_dir;   // empty: no segments on disk
  std::size_t trace_dir_max_bytes = std::size_t{1} << 30;
  std::size_t ring_capacity = 256;  // requests finished within one turn of the thread (50 ms)
  std::size_t ring_bytes = std::size_t{256} << 20;
  std::function<ServerActivity()> activity;  // for the hello, once a second; may be empty
};

class ServerLink {
 public:
  // Errors: kIo (an endpoint or a folder).
  static Result<std::unique_ptr<ServerLink>> create(const ServerLinkOptions& options,
                                                    const Clock& clock = system_clock());
  // With a link of the caller's own, e.g. MemoryNetwork's: nothing is bound; call turn() instead of
  // start().
  static Result<std::unique_ptr<ServerLink>> create(const ServerLinkOptions& options, Link link,
                                                    const Clock& clock);
  ~ServerLink();

  // The engine's TraceSink (engine.h). Valid while this object lives.
  std::function<void(std::unique_ptr<RequestTrace>)> sink();
  void count_opted_out() noexcept { publisher_.count_opted_out(); }

  // Calls on_table with the state folder's version, if there is one, then starts the thread, which
  // calls it for every accepted bundle.
  void start(OnTable on_table);
  void stop();  // idempotent; no on_table after it returned

  LinkStats stats() const;  // any thread
  const LinkEndpoints& endpoints() const { return link_.endpoints; }

  // For simulation: restore() once, then one turn of the loop at a time, on the caller's thread.
  void restore(OnTable on_table);
  void turn();

 private:
  ServerLink(const ServerLinkOptions& options, Link link, std::optional<StateDir> state,
             std::unique_ptr<TraceSegmentWriter> segments, const Clock& clock);
  void say_hello();
  void publish_stats();

  const ServerLinkOptions options_;
  const Clock& clock_;
  const std::uint64_t run_;
  Link link_;  // sender and receiver are null without endpoints
  TracePublisher publisher_;
  WeightsReceiver receiver_;  // link thread
  OnTable on_table_;
  std::optional<std::chrono::nanoseconds> last_hello_;
  std::thread thread_;
  std::atomic<bool> stopping_{false};
  mutable std::mutex stats_mutex_;  // between the link thread and stats(), never the engine
  LinkStats stats_;
};

}  // namespace foretoken
