#include "foretoken/kernels/convert.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "half.h"

namespace foretoken::kernels {
namespace {

// Nearest, ties to even, of |x| < 65520. Branchless, so that the loop over it vectorises.
inline std::uint16_t to_half(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  const std::uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  // Below 2^-14 the unit is 2^-24, which is that of floats in [0.5, 1): adding rounds.
  const std::uint32_t subnormal =
      std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  return static_cast<std::uint16_t>(sign | (magnitude < (113u << 23) ? subnormal : normal));
}

}  // namespace

void encode_half(const float* x, std::int64_t n, std::uint16_t* out, float* scale) {
  std::uint32_t largest = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(x[i]) & 0x7fffffffu;
    const std::uint32_t finite = magnitude < 0x7f800000u ? magnitude : 0u;
    largest = finite > largest ? finite : largest;
  }
  // At most 2^126, so that the inverse is a normal float too.
  std::uint32_t exponent = largest >> 23;
  exponent = exponent < 1 ? (largest == 0 ? 127u : 1u) : exponent;
  exponent = exponent > 253 ? 253u : exponent;
  *scale = std::bit_cast<float>(exponent << 23);
  const float inverse = std::bit_cast<float>((254u - exponent) << 23);
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(x[i]);
    const float finite =
        std::bit_cast<float>((bits & 0x7fffffffu) < 0x7f800000u ? bits : bits & 0x80000000u);
    out[i] = to_half(finite * inverse);
  }
}

void decode_half(const std::uint16_t* x, float scale, std::int64_t n, float* out) {
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint32_t h = x[i];
    // As a float with fp16's exponent bias, then brought to float's: exact, subnormals included.
    const float magnitude = std::bit_cast<float>((h & 0x7fffu) << 13) * 0x1p112f;
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(magnitude) | (h & 0x8000u) << 16;
    out[i] = std::bit_cast<float>(bits) * scale;
  }
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
