// The head's features of one position as they are logged and as the live head reads them: fp16
// values and one fp32 scale a tap. Both sides decode the very same numbers, so that a replay of the
// log is exact.
#pragma once

#include <cstdint>

#include "foretoken/kernels/convert.h"
#include "runtime/speculate/head/draft_head.h"

namespace foretoken {

// taps: [kHeadTaps, hidden] as the forward pass gave them -> values [kHeadTaps, hidden], scales
// [kHeadTaps].
inline void encode_features(const float* taps, std::int64_t hidden, std::uint16_t* values,
                            float* scales) {
  for (int tap = 0; tap < kHeadTaps; ++tap)
    kernels::encode_half(taps + tap * hidden, hidden, values + tap * hidden, scales + tap);
}
inline void decode_features(const std::uint16_t* values, const float* scales, std::int64_t hidden,
                            float* features) {
  for (int tap = 0; tap < kHeadTaps; ++tap)
    kernels::decode_half(values + tap * hidden, scales[tap], hidden, features + tap * hidden);
}

}  // namespace foretoken
