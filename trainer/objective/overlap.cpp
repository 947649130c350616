// overlap: -log sum_v min(p(v), q(v)), the chance that a draft is accepted. It learned fastest in
// our trials.
#include <algorithm>
#include <cmath>

#include "trainer/objective/objective.h"

namespace foretoken::trainer {

double overlap_loss(std::span<const float> p, std::span<const float> q, std::span<float> gradient) {
  double overlap = 0;
  for (std::size_t i = 0; i < p.size(); ++i) overlap += std::min(p[i], q[i]);
  overlap = std::max(overlap, double(kMinQ));  // d loss / d logit stays within 1
  for (std::size_t i = 0; i < p.size(); ++i)
    if (q[i] < p[i]) gradient[i] = static_cast<float>(-q[i] / overlap);
  return -std::log(overlap);
}

}  // namespace foretoken::trainer
