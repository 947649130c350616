// Brings the current version to a server that serves an older one: sent when it is published, and
// again whenever a hello shows that it did not arrive (a server restarted, a message was lost),
// less and less often while nothing changes. Never sent to a server that refused this very version.
// Pure state machine.
#pragma once

#include <chrono>
#include <vector>

#include "foretoken/protocol/control.h"
#include "foretoken/protocol/transport.h"

namespace foretoken::trainer {

class WeightsSender {
 public:
  // A new version is due at once.
  void publish(SpeculatorVersion version, std::vector<std::byte> bundle);
  // A server that came (back) is sent the version at once if it needs it.
  void heard(const ServerHello& hello);
  // Sends if due. The chunks of one bundle go out together; what does not fit is sent with the next
  // try.
  void pump(Sender& sender, std::chrono::nanoseconds now);

  SpeculatorVersion current() const { return current_; }

 private:
  bool wanted() const;
  static constexpr std::chrono::seconds kFirstRetry{2}, kLastRetry{60};
  SpeculatorVersion current_;
  std::vector<std::byte> bundle_;
  std::optional<ServerHello> server_;
  std::optional<std::chrono::nanoseconds> due_;  // nullopt: at once
  std::chrono::nanoseconds retry_ = kFirstRetry;
};

}  // namespace foretoken::trainer
