#include <immintrin.h>

#include "peak_functions.h"

namespace foretoken::kernels {

std::uint64_t sum_words_avx512(const std::byte* data, std::size_t bytes) {
  __m512i sums[8];
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) sums[j] = _mm512_setzero_si512();
  for (std::size_t i = 0; i < bytes; i += 512)
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      __builtin_prefetch(data + i + 64 * j + 4096);  // as the linear layers do
      sums[j] = _mm512_add_epi64(sums[j], _mm512_loadu_si512(data + i + 64 * j));
    }
  std::uint64_t total = 0;
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    alignas(64) std::uint64_t words[8];
    _mm512_store_si512(words, sums[j]);
    for (std::uint64_t word : words) total += word;
  }
  return total;
}

std::int64_t int8_spin_avx512(std::int64_t iterations, std::int32_t* sink) {
  __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
  const __m512i ones = _mm512_set1_epi16(1);
  __m512i sums[kInt8Chains];  // every loop over them unrolled, so that they stay in registers
#pragma GCC unroll 16
  for (int j = 0; j < kInt8Chains; ++j) sums[j] = _mm512_setzero_si512();
  for (std::int64_t i = 0; i < iterations; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < kInt8Chains; ++j) {
      asm volatile("" : "+v"(a), "+v"(b));
      sums[j] = _mm512_add_epi32(sums[j], _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), ones));
    }
#pragma GCC unroll 16
  for (int j = 0; j < kInt8Chains; ++j) *sink += _mm512_cvtsi512_si32(sums[j]);
  return iterations * kInt8Chains * 64;
}

}  // namespace foretoken::kernels
