#include "runtime/speculate/candidates.h"

#include <algorithm>

namespace foretoken {

static_assert(kOwnClasses + 3 * kProbabilityBuckets * kCountBuckets == kFusionClasses);
static_assert(1 + 2 * (TrafficStore::kMaxOrder - TrafficStore::kMinOrder + 1) <= kMaxCandidates);

int probability_bucket(std::uint32_t count, std::uint32_t total) {
  // In integers, so that a bucket never depends on rounding: 20 * count / total against 4, 8,
  // 13, 19.
  const std::uint64_t twentieths = std::uint64_t{20} * count;
  constexpr std::array<std::uint64_t, 4> kEdges = {4, 8, 13, 19};
  int bucket = 0;
  for (std::uint64_t edge : kEdges) bucket += twentieths >= edge * total ? 1 : 0;
  return bucket;
}

int count_bucket(std::uint32_t total) {
  return total >= 16 ? 3 : total >= 4 ? 2 : total >= 2 ? 1 : 0;
}

std::uint8_t own_class(int match_length) {
  return std::uint8_t(std::min(match_length, kOwnClasses) - 1);
}

std::uint8_t traffic_class(int order, std::uint32_t count, std::uint32_t total) {
  return std::uint8_t(kOwnClasses +
                      (order - TrafficStore::kMinOrder) * kProbabilityBuckets * kCountBuckets +
                      probability_bucket(count, total) * kCountBuckets + count_bucket(total));
}

CandidateList find_candidates(const NgramIndex& own, const TrafficStore& traffic,
                              std::span<const TokenId> drafted) {
  CandidateList list;
  if (const auto match = own.find(drafted)) list.push_back({match->next, own_class(match->length)});
  std::array<TokenId, TrafficStore::kMaxOrder> buffer;
  const int known = own.tail(drafted, TrafficStore::kMaxOrder, buffer.data());
  const std::span<const TokenId> context(buffer.data() + (buffer.size() - std::size_t(known)),
                                         std::size_t(known));
  for (int order = TrafficStore::kMaxOrder; order >= TrafficStore::kMinOrder; --order) {
    for (const TrafficStore::Continuation& item : traffic.find(context, order))
      list.push_back({item.token, traffic_class(order, item.count, item.total)});
  }
  return list;
}

}  // namespace foretoken
