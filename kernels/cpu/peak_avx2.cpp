#include <immintrin.h>

#include "peak_functions.h"

namespace foretoken::kernels {

std::uint64_t sum_words_avx2(const std::byte* data, std::size_t bytes) {
  __m256i sums[8];
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) sums[j] = _mm256_setzero_si256();
  for (std::size_t i = 0; i < bytes; i += 256)
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      if (j % 2 == 0) __builtin_prefetch(data + i + 32 * j + 4096);  // as the linear layers do
      sums[j] = _mm256_add_epi64(
          sums[j], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + i + 32 * j)));
    }
  std::uint64_t total = 0;
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    alignas(32) std::uint64_t words[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(words), sums[j]);
    for (std::uint64_t word : words) total += word;
  }
  return total;
}

// 16-bit sums of two products (vpmaddubsw), widened and added: what a linear layer without VNNI
// does.
std::int64_t int8_spin_avx2(std::int64_t iterations, std::int32_t* sink) {
  __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5);
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sums[kInt8Chains];  // every loop over them unrolled, so that they stay in registers
#pragma GCC unroll 16
  for (int j = 0; j < kInt8Chains; ++j) sums[j] = _mm256_setzero_si256();
  for (std::int64_t i = 0; i < iterations; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < kInt8Chains; ++j) {
      asm volatile("" : "+x"(a), "+x"(b));  // each product is to be made, not remembered
      sums[j] = _mm256_add_epi32(sums[j], _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
    }
#pragma GCC unroll 16
  for (int j = 0; j < kInt8Chains; ++j) *sink += _mm256_extract_epi32(sums[j], 0);
  return iterations * kInt8Chains * 32;
}

}  // namespace foretoken::kernels
