// How much of a core training takes beside a server (law 4). Pure; the clock is the caller's.
// - The server says b, the share of the last second in which its engine ran rounds: 1 - b of one
//   core is taken, but at least kLeast, so that a server that is never idle gets better too. After
//   a slice of w seconds it rests w (1 / share - 1). Of the last two b (a hello comes once a
//   second) the larger counts: a burst is met at once, one quiet second does not undo it.
// - A slice that was kept from the core says the same sooner: it rests kPatience times what it
//   waited besides, at most kLongestWait, about what is left of a burst of rounds.
// - A hello older than kStale is no news: the server is gone, and the share is the limit.
#pragma once

#include <chrono>

#include "foretoken/protocol/control.h"

namespace foretoken::trainer {

class Pace {
 public:
  static constexpr double kLeast = 0.1;
  static constexpr std::chrono::seconds kStale{5};
  static constexpr int kPatience = 8;
  static constexpr std::chrono::milliseconds kLongestWait{250};

  // limit: at most this share, (0, 1].
  explicit Pace(double limit) : limit_(limit) {}
  void heard(const ServerHello& hello, std::chrono::nanoseconds now);

  double share(std::chrono::nanoseconds now) const;  // of one core
  // worked: wall time of a slice, of which it did not have the core for `waited`.
  std::chrono::nanoseconds rest_after(std::chrono::nanoseconds worked,
                                      std::chrono::nanoseconds waited,
                                      std::chrono::nanoseconds now) const;

 private:
  const double limit_;
  bool heard_ = false;
  double busy_ = 0, busy_before_ = 0;
  std::chrono::nanoseconds heard_at_{0};
};

}  // namespace foretoken::trainer
