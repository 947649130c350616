// The measured speedup (law 6): decode time per token without speculation over that with it, from
// rounds the server itself runs without speculation, chosen by a coin tossed before anything else
// is known.
//   S = sum_h N_h (Tc_h / Nc_h) / sum_h T_h      over strata h = (sequences, context bucket)
//   T, N: ms and tokens of rounds with speculation (treatment); Tc, Nc: of control rounds; all
//   weighted by the inverse of the probability that the coin fell so. A stratum's weight is the
//   treatment's own token share: S is the factor by which the tokens that were served with
//   speculation would have taken longer without.
// Interval: 95 %, delta method on log S over clusters of consecutive rounds of a stratum. Given the
// machine's speed over time, however it drifts, the coin alone makes clusters' residuals
// independent with mean zero. Everything kept is a sum, so that any span of time is the difference
// of two snapshots: overall, the last minute, a quarter of a run. Rounds with prefill rows are left
// out (record() is not called for them). Engine thread, but for copies of SpeedupSums, which are
// values. Nothing allocates once labels are known.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "foretoken/protocol/result.h"
#include "runtime/observe/stats.h"

namespace foretoken {

// Tosses for a whole engine round, before the controller chooses (or for a window of them).
class ControlCoin {
 public:
  ControlCoin(double fraction, std::uint64_t seed) : fraction_(fraction), state_(seed) {}
  bool toss();  // true: it runs without speculation
  double fraction() const { return fraction_; }

 private:
  double fraction_;
  std::uint64_t state_;
};

struct SpeedupRound {
  int sequences = 0;        // decoding in this round
  double context = 0;       // mean of their lengths
  std::int64_t tokens = 0;  // emitted, all sequences
  double ms = 0;            // the whole round, drafting included
  bool control = false;
  double probability = 0;  // that the coin made it a control round, in (0, 1)
};

class SpeedupSums {
 public:
  static constexpr int kSequenceStrata = 16;  // 1..15, 16 or more
  static constexpr int kContextStrata = 7;    // below 128, 256, 512, 1024, 2048, 4096, the rest
  static constexpr int kStrata = kSequenceStrata * kContextStrata;
  // A cluster closes after this many rounds of its stratum. Long enough for a control round to be
  // in most at the default 3 %, short enough for dozens of clusters within a minute.
  static constexpr int kClusterRounds = 16;

  void record(const SpeedupRound& round);
  // Since an earlier copy of the same sums.
  SpeedupSums operator-(const SpeedupSums& earlier) const;

  // nullopt: fewer than kMinControl control rounds in strata with both arms.
  static constexpr std::int64_t kMinControl = 16;
  std::optional<Interval> estimate() const;
  std::int64_t rounds() const;
  std::int64_t control_rounds() const;
  // Share of treatment tokens in strata that have enough control rounds to count.
  double coverage() const;

  // A snapshot as text, for a client that wants the speedup since then (GET /stats?sums=1):
  // little-endian doubles in hexadecimal.
  std::string text() const;
  static Result<SpeedupSums> from_text(std::string_view text);

 private:
  enum { kControlMs, kControlTokens, kMs, kTokens, kArms };
  struct Stratum {
    std::array<double, kArms> sum{};  // closed clusters
    std::array<double, kArms*(kArms + 1) / 2>
        square{};  // upper triangle of sum over clusters x x^T
    double clusters = 0, rounds = 0, control_rounds = 0;
    // The open cluster. Not part of differences or estimates: at most kClusterRounds rounds are
    // late.
    std::array<double, kArms> open{};
    double open_rounds = 0, open_control = 0;
  };
  static bool counts(const Stratum& stratum);
  std::array<Stratum, kStrata> strata_{};
};

class SpeedupEstimator {
 public:
  // A label's index for record(); beyond kMaxLabels the index is -1 and the label is not tracked.
  static constexpr int kMaxLabels = 48;
  int label(std::string_view name);

  // now_s: monotonic. labels: what all the round's sequences share (domain, kind, version), may be
  // empty.
  void record(const SpeedupRound& round, double now_s, std::span<const int> labels);

  std::optional<Interval> overall() const { return total_.estimate(); }
  std::optional<Interval> last_minute(double now_s) const;
  std::optional<Interval> by_label(std::string_view name) const;
  const SpeedupSums& total() const { return total_; }

 private:
  static constexpr double kSnapshotSeconds = 5;
  static constexpr int kSnapshots = 13;  // the oldest is 60 to 65 s old
  struct Snapshot {
    double at_s = 0;
    SpeedupSums sums;
  };
  SpeedupSums total_;
  std::vector<Snapshot> ring_;
  std::size_t ring_next_ = 0;
  std::vector<std::pair<std::string, SpeedupSums>> labels_;
};

}  // namespace foretoken
