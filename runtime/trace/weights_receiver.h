// The server's side of the weights channel as a state machine: bundles and trainer status in,
// accepted tables out. A bundle is served only if it is whole, signed by a trusted key, of this
// model, of the right shapes, finite, and newer than what is served; everything else is refused,
// counted by reason, and reported to the trainer in the next hello. Reasons: truncated, magic,
// format, protocol, checksum, signature, shape, non-finite, fingerprint, kind, version. Link thread
// only.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "foretoken/protocol/control.h"
#include "foretoken/protocol/transport.h"
#include "runtime/speculate/fusion_table.h"
#include "runtime/trace/state_dir.h"

namespace foretoken {

// Called on the link thread (at start, on the thread that calls ServerLink::start).
using OnTable = std::function<void(std::shared_ptr<const FusionTable>, SpeculatorVersion)>;

class WeightsReceiver {
 public:
  WeightsReceiver(const ModelFingerprint& fingerprint, TrustedSigners trusted,
                  std::optional<StateDir> state, const Clock& clock);

  // Serves the state folder's bundle, if there is one.
  void restore(const OnTable& on_table);
  void handle(const Message& message, const OnTable& on_table);

  SpeculatorVersion served() const { return served_; }
  SpeculatorVersion refused() const { return refused_; }
  const std::string& refused_reason() const { return refused_reason_; }
  std::int64_t bundles_received() const { return bundles_received_; }
  const std::map<std::string, std::int64_t>& rejected() const { return rejected_; }
  // nullopt: no status within the last 5 s (five of the trainer's intervals).
  std::optional<TrainerStatus> trainer() const;
  // Something changed that the trainer should hear of at once; reading clears it.
  bool take_news() { return std::exchange(news_, false); }

 private:
  Status accept(std::span<const std::byte> bytes, const OnTable& on_table, bool from_disk);
  void refuse(const Error& error, SpeculatorVersion version);

  const ModelFingerprint fingerprint_;
  const TrustedSigners trusted_;
  const std::optional<StateDir> state_;
  const Clock& clock_;
  BundleAssembler assembler_;
  SpeculatorVersion served_, refused_;
  std::uint64_t served_hash_ = 0;
  std::string refused_reason_;
  std::int64_t bundles_received_ = 0;
  std::map<std::string, std::int64_t> rejected_;
  std::optional<TrainerStatus> trainer_;
  std::chrono::nanoseconds trainer_heard_{0};
  bool news_ = false;
};

}  // namespace foretoken
