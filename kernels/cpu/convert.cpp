#include "foretoken/kernels/convert.h"

#include <cmath>
#include <cstring>

#include "elementwise_functions.h"
#include "half.h"
#include "half_rows_body.h"

namespace foretoken::kernels {

void encode_half(const float* x, std::int64_t n, std::uint16_t* out, float* scale) {
  elementwise_active().encode_half(x, n, out, scale);
}

void decode_half(const std::uint16_t* x, float scale, std::int64_t n, float* out) {
  elementwise_active().decode_half(x, scale, n, out);
}

void quantize_q8_0(const float* x, std::int64_t n, std::byte* out) {
  for (std::int64_t b = 0; b < n; b += 32, out += 34) {
    float largest = 0;
    for (int i = 0; i < 32; ++i) {
      const float magnitude = std::fabs(x[b + i]);
      largest = magnitude > largest ? magnitude : largest;
    }
    // The largest d of fp16 bounds what can be kept: weights are far below it.
    const float wanted = largest / 127.0f;
    const std::uint16_t d = to_half(wanted < 65504.0f ? wanted : 65504.0f);
    const float value = half_to_float(d);
    std::memcpy(out, &d, 2);
    for (int i = 0; i < 32; ++i) {
      float code = value > 0 ? std::round(x[b + i] / value) : 0.0f;
      code = code > 127.0f ? 127.0f : code < -127.0f ? -127.0f : code;
      const auto byte = static_cast<std::int8_t>(code);
      std::memcpy(out + 2 + i, &byte, 1);
    }
  }
}

}  // namespace foretoken::kernels
