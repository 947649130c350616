#include <immintrin.h>

#include "peak_functions.h"

namespace foretoken::kernels {

std::int64_t int8_spin_avx512_vnni(std::int64_t iterations, std::int32_t* sink) {
  const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
  __m512i sums[kInt8Chains];
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  for (std::int64_t i = 0; i < iterations; ++i)
    for (__m512i& sum : sums) {
      sum = _mm512_dpbusd_epi32(sum, a, b);
      asm volatile("" : "+v"(sum));
    }
  alignas(64) std::int32_t lanes[16];
  for (const __m512i& sum : sums) {
    _mm512_store_si512(lanes, sum);
    *sink += lanes[0];
  }
  return iterations * kInt8Chains * 64;
}

}  // namespace foretoken::kernels
