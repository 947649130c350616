// cross-entropy: -log q(v), v the most probable token of p.
#include <algorithm>
#include <cmath>

#include "trainer/objective/objective.h"

namespace foretoken::trainer {

double cross_entropy_loss(std::span<const float> p, std::span<const float> q,
                          std::span<float> gradient) {
  const auto top = std::size_t(std::ranges::max_element(p) - p.begin());
  if (p.empty() || q[top] <= 0) return 0;
  gradient[top] = -1;
  return -std::log(std::max(q[top], kMinQ));
}

}  // namespace foretoken::trainer
