// Net speedup (law 6): what everything together gains, the trainer's share of the cores included.
// Time is cut into windows; at each border a coin decides whether the window is *plain* (no
// speculation, no capture, the trainer told to pause) or has everything on. Estimated is the ratio
// of decode time per token at equal concurrency:
//   S = sum_h N_h (Tp_h / Np_h) / sum_h T_h     over strata h = sequences decoding (1..8, more)
//   T, N: ms and tokens of rounds with everything on; Tp, Np: of plain windows
// Interval: 95 %, delta method over whole windows, which are what the coin assigned; Student's t
// with the plain windows' degrees of freedom. The start of every window is not counted: requests in
// flight, caches and a trainer's step in progress belong to the window before.
// The cost: a fraction p of the time is served at plain speed, p (1 - 1/S) of the throughput; and
// of requests that a plain window touches only what came before it is captured. Windows pass only
// while rounds are run. Engine thread.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "runtime/observe/speedup.h"
#include "runtime/observe/stats.h"

namespace foretoken {

struct NetSpeedupOptions {
  // 6 % of an hour is 43 plain windows: an interval of a few per cent where windows differ by ten.
  double plain_fraction = 0.06;  // 0: never
  // Some hundred rounds; long against a step of the trainer, short against a change of traffic.
  double window_s = 5;
  // A step of the trainer, and the way of the message that pauses it (50 ms at most).
  double settle_s = 1;
  std::uint64_t seed = 0;
};

class NetSpeedupWindows {
 public:
  explicit NetSpeedupWindows(const NetSpeedupOptions& options)
      : options_(options), coin_(options.plain_fraction, options.seed) {
    if (options.plain_fraction > 0) windows_.reserve(kWindows);  // none is allocated in a round
  }

  // Before a round that decodes. now_s: monotonic. true: this round is plain.
  bool plain(double now_s);
  // After a round (of the window that plain() spoke of) without prefill rows, of requests that may
  // be drafted for.
  void record(double now_s, int sequences, std::int64_t tokens, double ms);

  bool plain_now() const { return plain_; }
  NetSpeedup estimate() const;

  // Both arms need some windows before their spread means anything.
  static constexpr int kLeastWindows = 4;

 private:
  static constexpr std::size_t kStrata = 9;
  static constexpr std::size_t kWindows = 4096;  // six hours of them
  struct Sums {
    double ms = 0, tokens = 0;
  };
  struct Window {
    bool plain = false;
    std::array<Sums, kStrata> strata{};
    bool empty() const;
  };
  void close();

  NetSpeedupOptions options_;
  ControlCoin coin_;
  bool plain_ = false, started_ = false;
  double window_began_s_ = 0, last_round_s_ = 0;
  Window open_;
  std::vector<Window> windows_;  // the last ones, as a ring
  std::size_t next_ = 0;
};

}  // namespace foretoken
