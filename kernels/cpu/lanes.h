// Sixteen-lane vectors in GCC's vector extension: the same source compiles to SSE, AVX2 or AVX-512,
// and, since contraction is off and the lane order is written out, gives the same bits on each.
// Everything here has internal linkage: a translation unit compiled for a wide instruction set must
// not lend its copy of an inline function to a narrower one.
#pragma once

#include <cstdint>
#include <cstring>

namespace foretoken::kernels {
namespace {

#define FORETOKEN_LANE_FUNCTION [[maybe_unused, gnu::always_inline]] static inline

typedef float Float16 __attribute__((vector_size(64)));
typedef std::int32_t Int16 __attribute__((vector_size(64)));
typedef std::uint32_t Uint16 __attribute__((vector_size(64)));
typedef double Double8 __attribute__((vector_size(64)));
typedef std::int64_t Long8 __attribute__((vector_size(64)));
typedef std::uint64_t Ulong8 __attribute__((vector_size(64)));
typedef float Float8 __attribute__((vector_size(32)));
typedef std::uint32_t Uint8 __attribute__((vector_size(32)));
typedef std::int8_t Byte16 __attribute__((vector_size(16)));

template <class V>
FORETOKEN_LANE_FUNCTION V load_lanes(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
FORETOKEN_LANE_FUNCTION void store_lanes(void* p, V v) {
  std::memcpy(p, &v, sizeof v);
}
FORETOKEN_LANE_FUNCTION Float16 splat(float x) { return x - Float16{}; }

// Round to nearest, ties to even, for |x| < 2^22: adding 1.5 * 2^23 leaves the integer in the low
// bits.
FORETOKEN_LANE_FUNCTION Int16 round_to_int(Float16 x) {
  return (Int16)(x + 12582912.0f) - 0x4b400000;
}

// e^x for x <= 0; 0 below -87. x = n ln2 + r, |r| <= ln2/2; Taylor to r^7, whose next term is below
// 2^-27 of the sum; 2^n by its bit pattern. Relative error below 2e-7.
FORETOKEN_LANE_FUNCTION Float16 exp_nonpositive(Float16 x) {
  const Int16 tiny = x < -87.0f;
  x = tiny ? splat(-87.0f) : x;
  const Float16 shifted = x * 1.44269504f + 12582912.0f;
  const Float16 n = shifted - 12582912.0f;
  const Int16 exponent = (Int16)shifted - 0x4b400000;
  // ln2 in two parts: n * 0.693359375 is exact (|n| < 2^7, nine-bit constant).
  const Float16 r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Float16 p = r * (1.0f / 5040) + (1.0f / 720);
  p = p * r + (1.0f / 120);
  p = p * r + (1.0f / 24);
  p = p * r + (1.0f / 6);
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Float16 power = (Float16)((exponent + 127) << 23);
  return tiny ? Float16{} : p * power;
}

// The lanes' sum, halves onto halves.
FORETOKEN_LANE_FUNCTION float sum_lanes(Float16 v) {
  float lane[16];
  std::memcpy(lane, &v, 64);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}
FORETOKEN_LANE_FUNCTION float max_lanes(Float16 v) {
  float lane[16];
  std::memcpy(lane, &v, 64);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
  return lane[0];
}

}  // namespace
}  // namespace foretoken::kernels
