// How much memory a trace takes: of the arrays that grow, by their element counts alone, so that it
// is a constant of the trace and what a bounded queue subtracts is what it added.
#pragma once

#include <cstddef>

#include "foretoken/protocol/trace_record.h"

namespace foretoken {

inline std::size_t approximate_bytes(const RequestTrace& trace) noexcept {
  return sizeof(RequestTrace) + trace.tokens.size() * sizeof(TokenId) +
         trace.generated.size() * sizeof(GeneratedTokenTrace) +
         trace.rounds.size() * sizeof(RoundTrace) + trace.policy.bytes() +
         trace.tap_values.size() * sizeof(std::uint16_t) + trace.tap_scales.size() * sizeof(float);
}

}  // namespace foretoken
