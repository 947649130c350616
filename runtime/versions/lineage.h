// The lineage of a model's speculators: what happened to every version this server was sent, one
// JSON object a line, appended and synced before it takes effect, never rewritten. What a restarted
// server needs is in the lines themselves: `served` and `frozen` as they are after the event, and
// the fate of every version. Crash-safe at every instant: a torn last line is cut off when the file
// is opened, a damaged line is skipped and counted. Not thread-safe; VersionKeeper holds it under
// its lock.
#pragma once

#include <boost/json/object.hpp>
#include <deque>
#include <filesystem>
#include <optional>
#include <set>
#include <string>

#include "foretoken/protocol/ids.h"
#include "foretoken/protocol/result.h"

namespace foretoken {

struct LineageEvent {
  std::int64_t unix_ms = 0;
  std::string event;  // received, canary, promoted, rolled_back, refused, superseded, frozen,
                      // unfrozen, restored, damaged, given
  SpeculatorVersion version, parent;
  SpeculatorVersion served;  // after the event
  bool frozen = false;       // after the event
  std::string kind;          // "fusion", "head"
  std::int64_t trained_requests = 0, trained_tokens = 0;
  double loss = 0;
  std::string verdict;  // the trainer's gate, as the bundle names it; of a given one: its digest
  std::string reason;   // of this event: the canary's verdict, the refusal, the operator
  std::int64_t judged_requests = 0;  // promoted and rolled_back: what the verdict stands on
  // Of predicted speed, over the version it was compared to: 0.03 is 3 % faster.
  double gain = 0, low = 0, high = 0;
};
boost::json::object to_json(const LineageEvent& event);
Result<LineageEvent> lineage_event_from_json(const boost::json::value& value);

// What the lines say, folded.
struct LineageState {
  SpeculatorVersion served, highest;  // highest: ever received or refused after its signature held
  bool frozen = false;
  std::optional<SpeculatorVersion> canary;   // begun, without a fate
  std::optional<SpeculatorVersion> waiting;  // received, its canary has not begun
  std::set<std::uint64_t> banned;            // rolled back or refused: never taken again
  std::set<std::uint64_t> lost;              // damaged on this disk: may be sent again
  std::deque<SpeculatorVersion> proven;      // promoted and not rolled back, oldest first
  // What an operator gave on the command line, last, and its digest.
  SpeculatorVersion given;
  std::string given_digest;
  void apply(const LineageEvent& event);
};

class Lineage {
 public:
  static constexpr std::size_t kRemembered = 256;  // events() holds the newest
  // Larger files are not read: at some 400 bytes an event and a dozen events an hour this is years.
  static constexpr std::size_t kMaxBytes = std::size_t{64} << 20;

  // In memory only: nothing survives.
  Lineage() = default;
  // Creates the file with its first event. Errors: kIo, kOutOfRange.
  static Result<Lineage> open(const std::filesystem::path& path);

  // Appended and synced when this returns. On kIo it holds in memory all the same: serving goes on.
  Status append(LineageEvent event);
  const LineageState& state() const { return state_; }
  const std::deque<LineageEvent>& events() const { return events_; }  // oldest first
  std::int64_t skipped() const { return skipped_; }

 private:
  void remember(LineageEvent event);
  std::filesystem::path path_;
  LineageState state_;
  std::deque<LineageEvent> events_;
  std::int64_t skipped_ = 0;
};

}  // namespace foretoken
