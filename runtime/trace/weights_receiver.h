// The server's side of the weights channel as a state machine: bundles and trainer status in, and
// what is whole, signed by a trusted key and of this model goes on to the VersionKeeper. Everything
// else is refused, counted by reason, and reported to the trainer in the next hello, as what the
// keeper refuses is. Reasons: truncated, magic, format, protocol, checksum, signature, shape,
// non-finite, fingerprint, kind, version, frozen. Link thread only.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "foretoken/protocol/control.h"
#include "foretoken/protocol/transport.h"
#include "runtime/versions/version_keeper.h"

namespace foretoken {

class WeightsReceiver {
 public:
  WeightsReceiver(const ModelFingerprint& fingerprint, TrustedSigners trusted,
                  VersionKeeper& keeper, const Clock& clock);

  void handle(const Message& message);
  // Digest, signature, layout and fingerprint: all that can be checked without the model.
  Result<Bundle> parse(std::span<const std::byte> bytes) const;

  // The newest this run refused, here or in the keeper, 0: none.
  SpeculatorVersion refused() const;
  std::string refused_reason() const;
  std::int64_t bundles_received() const { return bundles_received_; }
  const std::map<std::string, std::int64_t>& rejected() const { return rejected_; }
  // nullopt: no status within the last 5 s (five of the trainer's intervals).
  std::optional<TrainerStatus> trainer() const;
  // Something changed that the trainer should hear of at once; reading clears it.
  bool take_news() { return std::exchange(news_, false); }

 private:
  void refuse(const Error& error, SpeculatorVersion version);

  const ModelFingerprint fingerprint_;
  const TrustedSigners trusted_;
  VersionKeeper& keeper_;
  const Clock& clock_;
  BundleAssembler assembler_;
  SpeculatorVersion refused_;
  std::string refused_reason_;
  std::int64_t bundles_received_ = 0;
  std::map<std::string, std::int64_t> rejected_;
  std::optional<TrainerStatus> trainer_;
  std::chrono::nanoseconds trainer_heard_{0};
  bool news_ = false;
};

}  // namespace foretoken
