#include "foretoken/kernels/convert.h"

#include <cmath>
#include <cstring>

#include "kernels/cpu/cpu_ops.h"

namespace foretoken::kernels {

void encode_half(const float* x, std::int64_t n, std::uint16_t* out, float* scale) {
  cpu_ops().elementwise.encode_half(x, n, out, scale);
}

void decode_half(const std::uint16_t* x, float scale, std::int64_t n, float* out) {
  cpu_ops().elementwise.decode_half(x, scale, n, out);
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
    const std::uint16_t d = float_to_half(wanted < 65504.0f ? wanted : 65504.0f);
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

namespace {

// The code of x in steps of `step`, in [-8, 7].
float q4_code(float x, float step) {
  const float code = step != 0 ? std::round(x / step) : 0.0f;
  return code > 7.0f ? 7.0f : code >= -8.0f ? code : -8.0f;  // of NaN, -8
}

}  // namespace

void quantize_q4_0(const float* x, std::int64_t n, std::byte* out) {
  constexpr int kBlock = 32, kSteps = 12;
  for (std::int64_t b = 0; b < n; b += kBlock, x += kBlock, out += 18) {
    float largest = 0;
    for (int i = 0; i < kBlock; ++i)
      largest = std::fabs(x[i]) > largest ? std::fabs(x[i]) : largest;
    std::uint16_t best = 0;
    double least = -1;
    for (int k = 0; k < 2 * kSteps; ++k) {
      const float wanted =
          (k % 2 ? -largest : largest) / (6.0f + 0.25f * static_cast<float>(k / 2));
      const float bounded = wanted < -65504.0f ? -65504.0f : wanted > 65504.0f ? 65504.0f : wanted;
      const std::uint16_t d = float_to_half(bounded);
      const float step = half_to_float(d);
      double error = 0;
      for (int i = 0; i < kBlock; ++i) {
        const double off =
            static_cast<double>(x[i]) - static_cast<double>(q4_code(x[i], step) * step);
        error += off * off;
      }
      if (least < 0 || error < least) least = error, best = d;
    }
    std::memcpy(out, &best, 2);
    const float step = half_to_float(best);
    for (int i = 0; i < kBlock / 2; ++i) {
      const int low = static_cast<int>(q4_code(x[i], step)) + 8;
      const int high = static_cast<int>(q4_code(x[i + kBlock / 2], step)) + 8;
      out[2 + i] = static_cast<std::byte>(low | high << 4);
    }
  }
}

}  // namespace foretoken::kernels
