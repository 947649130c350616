// Sixteen-bit floats to and from float, one value at a time, in integers and exact float steps: the
// same bits on every instruction set and device. Internal linkage throughout: a file compiled for a
// wide instruction set must not lend its copy to the others.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define FORETOKEN_HOST_DEVICE __host__ __device__
#else
#define FORETOKEN_HOST_DEVICE
#endif
#define FORETOKEN_PORTABLE [[maybe_unused]] FORETOKEN_HOST_DEVICE inline

namespace foretoken::kernels {
namespace {

FORETOKEN_PORTABLE float float_of(std::uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
FORETOKEN_PORTABLE std::uint32_t bits_of(float f) {
  std::uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return bits;
}

FORETOKEN_PORTABLE float bf16_to_float(std::uint16_t h) {
  return float_of(static_cast<std::uint32_t>(h) << 16);
}
// Nearest, ties to even; NaN becomes 0, infinities and overflow the largest finite value.
FORETOKEN_PORTABLE std::uint16_t float_to_bf16_finite(float f) {
  std::uint32_t bits = bits_of(f);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0;
  bits += 0x7fffu + ((bits >> 16) & 1u);
  if ((bits & 0x7f800000u) == 0x7f800000u)
    return static_cast<std::uint16_t>((bits >> 31) << 15 | 0x7f7fu);
  return static_cast<std::uint16_t>(bits >> 16);
}

FORETOKEN_PORTABLE float half_to_float(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16;
  const std::uint32_t exponent = (h >> 10) & 0x1fu, mantissa = h & 0x3ffu;
  if (exponent == 31) return float_of(sign | 0x7f800000u | mantissa << 13);
  if (exponent != 0) return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
  // Zero and subnormals: mantissa * 2^-24, exact in float.
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return sign ? -magnitude : magnitude;
}
// Nearest, ties to even, of |x| < 65520. Branchless, so that a loop over it vectorises.
FORETOKEN_PORTABLE std::uint16_t float_to_half(float x) {
  const std::uint32_t bits = bits_of(x);
  const std::uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  const std::uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  // Below 2^-14 the unit is 2^-24, which is that of floats in [0.5, 1): adding rounds.
  const std::uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  return static_cast<std::uint16_t>(sign | (magnitude < (113u << 23) ? subnormal : normal));
}
// Of a scale: saturating; what is not above 0 (NaN too) becomes 0.
FORETOKEN_PORTABLE std::uint16_t scale_to_half(float f) {
  if (!(f > 0)) return 0;
  return f >= 65504.0f ? 0x7bff : float_to_half(f);
}
// Of any value, saturating; NaN becomes 0.
FORETOKEN_PORTABLE std::uint16_t finite_to_half(float f) {
  const std::uint32_t sign = bits_of(f) >> 16 & 0x8000u;
  return static_cast<std::uint16_t>(scale_to_half(sign != 0 ? -f : f) | sign);
}

}  // namespace
}  // namespace foretoken::kernels
