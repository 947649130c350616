// A head before anything was learned: begins as the n-gram candidates do, with a state that passes
// the target's final state through. For tests, benchmarks and as a start for training.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/speculate/head/recurrent_head.h"

namespace foretoken {

// fc = 0.02 noise, identity on the final state; the other matrices noise of 0.02; gain 0.1; biases
// those of FusionTable::initial(), raised so that a candidate stands against the whole vocabulary
// as it stands against "something else" there. vocab: ascending, a multiple of 16.
HeadParts initial_head(std::int64_t hidden, std::int64_t inner, std::span<const TokenId> vocab,
                       std::uint64_t seed);

// Q8_0 blocks of a row-major matrix [n_out, n_in]; n_in a multiple of 32.
HeadMatrix quantized(std::span<const float> values);

}  // namespace foretoken
