#include "runtime/replay/plan.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace foretoken {

std::vector<std::size_t> unsent_of_quarter(int quarter, const std::vector<bool>& sent) {
  const auto border = [&](int q) {
    return (static_cast<std::size_t>(q) * sent.size() + kQuarters - 1) / kQuarters;
  };
  std::vector<std::size_t> unsent;
  for (std::size_t i = border(quarter); i < border(quarter + 1); ++i)
    if (!sent[i]) unsent.push_back(i);
  return unsent;
}

std::vector<std::size_t> thin_evenly(std::size_t size, std::size_t n) {
  n = std::min(n, size);
  std::vector<std::size_t> chosen;
  chosen.reserve(n);
  // The middle of the i-th of n equal parts; distinct because a part is at least one wide.
  for (std::size_t i = 0; i < n; ++i) chosen.push_back((2 * i + 1) * size / (2 * n));
  return chosen;
}

ClosedPlan::ClosedPlan(std::size_t n_requests, double budget_s, int concurrency)
    : n_(n_requests),
      budget_s_(budget_s),
      concurrency_(std::max(1, concurrency)),
      sent_(n_requests),
      expected_(n_requests) {
  if (budget_s_ > 0) {
    queue_ = thin_evenly(std::max<std::size_t>(1, n_ / kQuarters), kWarmup);
  } else {
    queue_.resize(n_);
    std::iota(queue_.begin(), queue_.end(), std::size_t{0});
    quarter_ = kQuarters - 1;
  }
}

std::size_t ClosedPlan::expected_total() const { return expected_; }

// Chooses what quarter_ still sends. A request in flight counts as half done.
void ClosedPlan::plan_quarter(double elapsed_s, std::size_t completed) {
  const double done = static_cast<double>(completed) +
                      0.5 * std::min<double>(concurrency_, sent_count_ - completed);
  const double per_request_s = (elapsed_s - border_s_) / std::max(0.5, done - border_completed_);
  // The first quarter began with the warm-up: its time and its requests are part of it.
  const double began_s = quarter_ == 0 ? 0 : elapsed_s;
  const double share_s =
      std::max(0.0, budget_s_ - began_s) / (kQuarters - quarter_) - (elapsed_s - began_s);
  const double fits = std::floor(std::max(0.0, share_s) / std::max(1e-6, per_request_s));
  const std::vector<std::size_t> unsent = unsent_of_quarter(quarter_, sent_);
  queue_.clear();
  at_ = 0;
  const auto n = static_cast<std::size_t>(std::clamp(fits, 1.0, static_cast<double>(n_)));
  for (const std::size_t i : thin_evenly(unsent.size(), n)) queue_.push_back(unsent[i]);
  border_s_ = elapsed_s;
  border_completed_ = done;
  const double left_s = std::max(0.0, budget_s_ - elapsed_s);
  expected_ = std::min(
      n_, sent_count_ + std::max(queue_.size(),
                                 static_cast<std::size_t>(left_s / std::max(1e-6, per_request_s))));
}

std::optional<std::size_t> ClosedPlan::next(double elapsed_s, std::size_t completed) {
  while (at_ == queue_.size()) {
    if (quarter_ == kQuarters - 1) {
      expected_ = sent_count_;
      return std::nullopt;
    }
    ++quarter_;
    plan_quarter(elapsed_s, completed);
  }
  const std::size_t i = queue_[at_++];
  sent_[i] = true;
  ++sent_count_;
  return i;
}

}  // namespace foretoken
