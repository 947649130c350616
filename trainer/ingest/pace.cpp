#include "trainer/ingest/pace.h"

#include <algorithm>
#include <cmath>

namespace foretoken::trainer {

void Pace::heard(const ServerHello& hello, std::chrono::nanoseconds now) {
  busy_before_ = busy_;
  busy_ = std::isfinite(hello.busy) ? std::clamp(double(hello.busy), 0.0, 1.0) : 1.0;
  heard_ = true;
  heard_at_ = now;
}

double Pace::share(std::chrono::nanoseconds now) const {
  if (!heard_ || now - heard_at_ > kStale) return limit_;
  return std::min(limit_, std::max(kLeast, 1 - std::max(busy_, busy_before_)));
}

std::chrono::nanoseconds Pace::rest_after(std::chrono::nanoseconds worked,
                                          std::chrono::nanoseconds waited,
                                          std::chrono::nanoseconds now) const {
  const double had = double(std::max(worked - waited, std::chrono::nanoseconds{0}).count());
  const double rest = had * (1 / share(now) - 1);
  return std::chrono::nanoseconds(static_cast<std::int64_t>(rest)) +
         std::min<std::chrono::nanoseconds>(kLongestWait, kPatience * waited);
}

}  // namespace foretoken::trainer
