// The n-gram candidates of one position: what the request's own context and recent traffic would
// continue with. The same list drafts, is logged with the trace, and is what the trainer learns the
// fusion table from. Order: own context first, then traffic by context of 4, 3, 2 tokens, two each,
// most frequent first. A token may appear several times, once a source: its biases add. The class
// layout (trace_record.h) and the buckets below are part of the trace format.
#pragma once

#include <cstdint>
#include <span>

#include "foretoken/protocol/trace_record.h"
#include "runtime/speculate/ngram_index.h"
#include "runtime/speculate/traffic_store.h"

namespace foretoken {

inline constexpr int kOwnClasses = 5;  // match lengths 1, 2, 3, 4, 5 or more
inline constexpr int kProbabilityBuckets =
    5;  // count / total: [0, .2) [.2, .4) [.4, .65) [.65, .95) [.95, 1]
inline constexpr int kCountBuckets = 4;  // total: 1, 2..3, 4..15, 16 or more

int probability_bucket(std::uint32_t count, std::uint32_t total);
int count_bucket(std::uint32_t total);
std::uint8_t own_class(int match_length);  // match_length >= 1
std::uint8_t traffic_class(int order, std::uint32_t count, std::uint32_t total);  // order 2..4

// Of the token that follows own.tokens() and then `drafted`.
CandidateList find_candidates(const NgramIndex& own, const TrafficStore& traffic,
                              std::span<const TokenId> drafted);

}  // namespace foretoken
