// forward-kl: sum_v p(v) log(p(v) / q(v)).
#include <algorithm>
#include <cmath>

#include "trainer/objective/objective.h"

namespace foretoken::trainer {

double forward_kl_loss(std::span<const float> p, std::span<const float> q,
                       std::span<float> gradient) {
  double loss = 0;
  for (std::size_t i = 0; i < p.size(); ++i) {
    if (p[i] <= 0 || q[i] <= 0) continue;
    loss += double(p[i]) * std::log(double(p[i]) / std::max(q[i], kMinQ));
    gradient[i] = -p[i];
  }
  return loss;
}

}  // namespace foretoken::trainer
