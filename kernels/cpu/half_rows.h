// fp16 rows with a scale (convert.h), in integers and exact float steps: the same bits from every
// instruction set it is compiled for.
#pragma once

#include <cstdint>

#include "kernels/cpu/simd.h"

namespace foretoken::kernels {
namespace {

[[maybe_unused]] void encode_half_of(const float* x, std::int64_t n, std::uint16_t* out,
                                     float* scale) {
  U32x16 largest_lanes{};
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const U32x16 magnitude = load_lanes<U32x16>(x + i) & 0x7fffffffu;
    const U32x16 finite = magnitude & (U32x16)(magnitude < 0x7f800000u);
    largest_lanes = finite > largest_lanes ? finite : largest_lanes;
  }
  std::uint32_t largest = 0;
  for (int lane = 0; lane < 16; ++lane)
    largest = largest_lanes[lane] > largest ? largest_lanes[lane] : largest;
  for (; i < n; ++i) {
    const std::uint32_t magnitude = __builtin_bit_cast(std::uint32_t, x[i]) & 0x7fffffffu;
    const std::uint32_t finite = magnitude < 0x7f800000u ? magnitude : 0u;
    largest = finite > largest ? finite : largest;
  }
  // At most 2^126, so that the inverse is a normal float too.
  std::uint32_t exponent = largest >> 23;
  exponent = exponent < 1 ? (largest == 0 ? 127u : 1u) : exponent;
  exponent = exponent > 253 ? 253u : exponent;
  *scale = __builtin_bit_cast(float, exponent << 23);
  const float inverse = __builtin_bit_cast(float, (254u - exponent) << 23);
  i = 0;
#if defined(__AVX512F__)
  // The same rounding in one instruction.
  for (; i + 16 <= n; i += 16) {
    const F32x16 v = load_lanes<F32x16>(x + i);
    const I32x16 finite = ((I32x16)v & 0x7fffffff) < 0x7f800000;
    const auto kept = (F32x16)((I32x16)v & (finite | (I32x16{} - 0x7fffffff - 1)));
    store_lanes(out + i, _mm512_cvtps_ph((__m512)(kept * inverse), _MM_FROUND_TO_NEAREST_INT));
  }
#endif
  for (; i < n; ++i) {
    const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, x[i]);
    const float finite =
        __builtin_bit_cast(float, (bits & 0x7fffffffu) < 0x7f800000u ? bits : bits & 0x80000000u);
    out[i] = float_to_half(finite * inverse);
  }
}

[[maybe_unused]] void decode_half_of(const std::uint16_t* x, float scale, std::int64_t n,
                                     float* out) {
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint32_t h = x[i];
    // As a float with fp16's exponent bias, then brought to float's: exact, subnormals included.
    const float magnitude = __builtin_bit_cast(float, (h & 0x7fffu) << 13) * 0x1p112f;
    const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, magnitude) | (h & 0x8000u) << 16;
    out[i] = __builtin_bit_cast(float, bits) * scale;
  }
}

}  // namespace
}  // namespace foretoken::kernels
