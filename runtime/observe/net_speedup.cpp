#include "runtime/observe/net_speedup.h"

#include <algorithm>
#include <cmath>

#include "runtime/observe/student_t.h"

namespace foretoken {

bool NetSpeedupWindows::Window::empty() const {
  return std::ranges::all_of(strata, [](const Sums& s) { return s.tokens == 0; });
}

void NetSpeedupWindows::close() {
  if (!open_.empty()) {
    if (windows_.size() < kWindows)
      windows_.push_back(open_);
    else
      windows_[next_] = open_;
    next_ = (next_ + 1) % kWindows;
  }
  open_ = {};
}

bool NetSpeedupWindows::plain(double now_s) {
  if (options_.plain_fraction <= 0) return false;
  // After a pause of traffic a window begins anew: what is measured is a machine that is serving.
  const bool idle = now_s - last_round_s_ > options_.window_s;
  if (!started_ || idle || now_s - window_began_s_ >= options_.window_s) {
    close();
    plain_ = coin_.toss();
    // A server's first window has everything on: nothing is known of the machine yet.
    if (!started_) plain_ = false;
    started_ = true;
    window_began_s_ = now_s;
    open_.plain = plain_;
  }
  last_round_s_ = now_s;
  return plain_;
}

void NetSpeedupWindows::record(double now_s, int sequences, std::int64_t tokens, double ms) {
  if (!started_ || sequences < 1 || tokens < 1 || !(ms > 0) || !std::isfinite(ms)) return;
  if (now_s - window_began_s_ < options_.settle_s) return;
  Sums& sums =
      open_.strata[std::min<std::size_t>(static_cast<std::size_t>(sequences), kStrata) - 1];
  sums.ms += ms;
  sums.tokens += static_cast<double>(tokens);
}

NetSpeedup NetSpeedupWindows::estimate() const {
  NetSpeedup out;
  out.plain_now = plain_;
  std::array<Sums, kStrata> with{}, without{};
  std::array<int, kStrata> n_with{}, n_without{};
  for (const Window& w : windows_) {
    ++out.windows;
    out.plain_windows += w.plain;
    for (std::size_t h = 0; h < kStrata; ++h) {
      if (w.strata[h].tokens == 0) continue;
      (w.plain ? without : with)[h].ms += w.strata[h].ms;
      (w.plain ? without : with)[h].tokens += w.strata[h].tokens;
      ++(w.plain ? n_without : n_with)[h];
    }
  }
  const auto counts = [&](std::size_t h) { return n_with[h] >= 2 && n_without[h] >= 2; };
  double plain_ms = 0, full_ms = 0;  // of the tokens that were served with everything on
  for (std::size_t h = 0; h < kStrata; ++h) {
    if (!counts(h)) continue;
    plain_ms += with[h].tokens * without[h].ms / without[h].tokens;
    full_ms += with[h].ms;
  }
  const std::int64_t full_windows = out.windows - out.plain_windows;
  if (plain_ms <= 0 || out.plain_windows < kLeastWindows || full_windows < kLeastWindows)
    return out;

  // d log S by each window's sums: its influence. Windows are independent, so the variance is the
  // sum of the squares about the mean, arm by arm.
  std::array<double, 2> sum{}, squares{}, n{};
  for (const Window& w : windows_) {
    double influence = 0;
    for (std::size_t h = 0; h < kStrata; ++h) {
      if (!counts(h)) continue;
      const double per_token = without[h].ms / without[h].tokens;
      const Sums& x = w.strata[h];
      influence +=
          w.plain ? with[h].tokens / without[h].tokens * (x.ms - per_token * x.tokens) / plain_ms
                  : per_token * x.tokens / plain_ms - x.ms / full_ms;
    }
    sum[w.plain] += influence;
    squares[w.plain] += influence * influence;
    n[w.plain] += 1;
  }
  double variance = 0;
  for (std::size_t arm = 0; arm < 2; ++arm)
    variance += std::max(0.0, squares[arm] - sum[arm] * sum[arm] / n[arm]) * n[arm] / (n[arm] - 1);
  Interval interval;
  interval.value = plain_ms / full_ms;
  const double half = student_t_quantile(std::min(n[0], n[1]) - 1) * std::sqrt(variance);
  interval.low = interval.value * std::exp(-half);
  interval.high = interval.value * std::exp(half);
  interval.rounds = out.windows;
  interval.control_rounds = out.plain_windows;
  out.value = interval;
  return out;
}

}  // namespace foretoken
