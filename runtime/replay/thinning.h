// Which requests of a log to send when there is time for only some: evenly over the log, so that
// the first quarter of what is sent comes from the log's first quarter and every domain keeps its
// share.
#pragma once

#include <cstddef>
#include <vector>

namespace foretoken {

// n of the indices in [begin, end), ascending and evenly spaced (all of them if n is more than
// there are).
std::vector<std::size_t> thin_evenly(std::size_t begin, std::size_t end, std::size_t n);

}  // namespace foretoken
