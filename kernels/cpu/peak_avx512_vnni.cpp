#include <immintrin.h>

#include "peak_functions.h"

namespace foretoken::kernels {

std::int64_t int8_spin_avx512_vnni(std::int64_t iterations, std::int32_t* sink) {
  const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
  __m512i sums[kInt8Chains];  // every loop over them unrolled, so that they stay in registers
#pragma GCC unroll 16
  for (int j = 0; j < kInt8Chains; ++j) sums[j] = _mm512_setzero_si512();
  for (std::int64_t i = 0; i < iterations; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < kInt8Chains; ++j) {
      sums[j] = _mm512_dpbusd_epi32(sums[j], a, b);
      asm volatile("" : "+v"(sums[j]));
    }
#pragma GCC unroll 16
  for (int j = 0; j < kInt8Chains; ++j) *sink += _mm512_cvtsi512_si32(sums[j]);
  return iterations * kInt8Chains * 64;
}

}  // namespace foretoken::kernels
