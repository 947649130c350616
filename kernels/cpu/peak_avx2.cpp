#include <immintrin.h>

#include "peak_functions.h"

namespace foretoken::kernels {

std::uint64_t sum_words_avx2(const std::byte* data, std::size_t bytes) {
  __m256i sums[8];
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  for (std::size_t i = 0; i < bytes; i += 256)
    for (int j = 0; j < 8; ++j)
      sums[j] = _mm256_add_epi64(
          sums[j], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + i + 32 * j)));
  std::uint64_t total = 0;
  for (const __m256i& sum : sums) {
    alignas(32) std::uint64_t words[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(words), sum);
    for (std::uint64_t word : words) total += word;
  }
  return total;
}

// 16-bit sums of two products (vpmaddubsw), widened and added: what a linear layer without VNNI
// does.
std::int64_t int8_spin_avx2(std::int64_t iterations, std::int32_t* sink) {
  __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5);
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sums[kInt8Chains];
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  for (std::int64_t i = 0; i < iterations; ++i)
    for (__m256i& sum : sums) {
      asm volatile("" : "+x"(a), "+x"(b));  // each product is to be made, not remembered
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
    }
  for (const __m256i& sum : sums) *sink += _mm256_extract_epi32(sum, 0);
  return iterations * kInt8Chains * 32;
}

}  // namespace foretoken::kernels
