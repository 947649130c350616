#include "runtime/replay/thinning.h"

#include <algorithm>

namespace foretoken {

std::vector<std::size_t> thin_evenly(std::size_t begin, std::size_t end, std::size_t n) {
  const std::size_t size = end > begin ? end - begin : 0;
  n = std::min(n, size);
  std::vector<std::size_t> chosen;
  chosen.reserve(n);
  // The middle of the i-th of n equal parts; distinct because a part is at least one wide.
  for (std::size_t i = 0; i < n; ++i) chosen.push_back(begin + (2 * i + 1) * size / (2 * n));
  return chosen;
}

}  // namespace foretoken
