// Which request a closed loop sends next, within a time budget. Without a budget: all of the log,
// in order. With one, a short warm-up from the log's first quarter measures how long a request
// takes, and each quarter is then thinned evenly to the number that fits its share of the time that
// is left; the figure is taken anew at each quarter's border. Not thread-safe: its user holds a
// lock.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

namespace foretoken {

inline constexpr int kQuarters = 4;
// The quarter of a log of n requests that request i is in.
constexpr int quarter_of(std::size_t i, std::size_t n) {
  return static_cast<int>(i * kQuarters / n);
}
// Of a quarter, ascending.
std::vector<std::size_t> unsent_of_quarter(int quarter, const std::vector<bool>& sent);

// n of the indices below `size`, ascending and evenly spaced (all of them if n is more than there
// are): what is sent where there is time for only some, so that every quarter and every domain of
// the log keeps its share.
std::vector<std::size_t> thin_evenly(std::size_t size, std::size_t n);

class ClosedPlan {
 public:
  // budget_s <= 0: no budget.
  ClosedPlan(std::size_t n_requests, double budget_s, int concurrency);
  // nullopt: the plan is done. elapsed_s since the replay began; `completed` so far.
  std::optional<std::size_t> next(double elapsed_s, std::size_t completed);
  // How many will have been sent in all, as planned now (an estimate until the last quarter).
  std::size_t expected_total() const;

 private:
  void plan_quarter(double elapsed_s, std::size_t completed);

  // Enough requests for a mean that is not one long answer's, few enough to be a small part of any
  // budget.
  static constexpr std::size_t kWarmup = 12;
  std::size_t n_;
  double budget_s_;
  int concurrency_;
  int quarter_ = -1;                // -1: warming up
  std::vector<std::size_t> queue_;  // of this quarter, ascending
  std::size_t at_ = 0;
  std::vector<bool> sent_;
  std::size_t sent_count_ = 0, expected_ = 0;
  double border_s_ = 0;  // when this quarter began, and how much was complete then
  double border_completed_ = 0;
};

}  // namespace foretoken
