#include <immintrin.h>

#include "peak_functions.h"

namespace foretoken::kernels {

std::uint64_t sum_words_avx512(const std::byte* data, std::size_t bytes) {
  __m512i sums[8];
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  for (std::size_t i = 0; i < bytes; i += 512)
    for (int j = 0; j < 8; ++j)
      sums[j] = _mm512_add_epi64(sums[j], _mm512_loadu_si512(data + i + 64 * j));
  std::uint64_t total = 0;
  for (const __m512i& sum : sums) {
    alignas(64) std::uint64_t words[8];
    _mm512_store_si512(words, sum);
    for (std::uint64_t word : words) total += word;
  }
  return total;
}

std::int64_t int8_spin_avx512(std::int64_t iterations, std::int32_t* sink) {
  __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
  const __m512i ones = _mm512_set1_epi16(1);
  __m512i sums[kInt8Chains];
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  for (std::int64_t i = 0; i < iterations; ++i)
    for (__m512i& sum : sums) {
      asm volatile("" : "+v"(a), "+v"(b));
      sum = _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), ones));
    }
  alignas(64) std::int32_t lanes[16];
  for (const __m512i& sum : sums) {
    _mm512_store_si512(lanes, sum);
    *sink += lanes[0];
  }
  return iterations * kInt8Chains * 64;
}

}  // namespace foretoken::kernels
