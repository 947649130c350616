#include <immintrin.h>

#include "linear_tile.h"

namespace foretoken::kernels {
namespace {

// Eight outputs a vector: a group's lane vectors are read as two halves.
struct Avx2 {
  using F = __m256;
  using I = __m256i;
  static constexpr int kLanes = 8;
  static constexpr int kRows = 4;
  static constexpr int kDotRows = 1;
  static constexpr bool kFloatSums =
      false;  // a scale costs nothing: it is what words are widened with

  FORETOKEN_INLINE F zero() { return _mm256_setzero_ps(); }
  FORETOKEN_INLINE I zero_int() { return _mm256_setzero_si256(); }
  FORETOKEN_INLINE I load(const void* p) { return _mm256_loadu_si256(static_cast<const I*>(p)); }
  FORETOKEN_INLINE F load_float(const float* p) { return _mm256_loadu_ps(p); }
  FORETOKEN_INLINE void store_float(float* p, F v) { _mm256_storeu_ps(p, v); }
  FORETOKEN_INLINE F load_half(const void* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  FORETOKEN_INLINE F load_bfloat(const void* p) {
    const I wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  FORETOKEN_INLINE I load_u8(const void* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
  }
  FORETOKEN_INLINE I load_s8(const void* p) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
  }
  FORETOKEN_INLINE F broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  FORETOKEN_INLINE I broadcast(const std::int32_t* p) { return _mm256_set1_epi32(*p); }
  FORETOKEN_INLINE I broadcast_pair(const void* p) {
    return _mm256_castps_si256(_mm256_broadcast_ss(static_cast<const float*>(p)));
  }
  FORETOKEN_INLINE F splat(float v) { return _mm256_set1_ps(v); }
  FORETOKEN_INLINE I splat_byte(int v) { return _mm256_set1_epi8(static_cast<char>(v)); }
  FORETOKEN_INLINE I splat_word(int v) { return _mm256_set1_epi16(static_cast<short>(v)); }
  FORETOKEN_INLINE I bit_and(I a, I b) { return _mm256_and_si256(a, b); }
  FORETOKEN_INLINE I or_masked(I a, I b, I mask) {
    return _mm256_or_si256(a, _mm256_and_si256(b, mask));
  }
  template <int N>
  FORETOKEN_INLINE I shift_right(I v) {
    return _mm256_srli_epi16(v, N);
  }
  template <int N>
  FORETOKEN_INLINE I shift_left(I v) {
    return _mm256_slli_epi32(v, N);
  }
  FORETOKEN_INLINE I shift_right_by(I v, int n) {
    return _mm256_srl_epi32(v, _mm_cvtsi32_si128(n));
  }
  template <int Shift, int Mask>
  FORETOKEN_INLINE I field(I v) {  // of each dword
    return _mm256_and_si256(_mm256_srli_epi32(v, Shift), _mm256_set1_epi32(Mask));
  }
  FORETOKEN_INLINE I add_int(I a, I b) { return _mm256_add_epi32(a, b); }
  FORETOKEN_INLINE I multiply_int(I a, I b) { return _mm256_mullo_epi32(a, b); }
  FORETOKEN_INLINE I look_up(I table, I index) { return _mm256_shuffle_epi8(table, index); }
  FORETOKEN_INLINE F to_float(I v) { return _mm256_cvtepi32_ps(v); }
  FORETOKEN_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  FORETOKEN_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
  FORETOKEN_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  FORETOKEN_INLINE F negate(F a) { return _mm256_xor_ps(a, _mm256_set1_ps(-0.0f)); }
  FORETOKEN_INLINE I dot_words(I sum, I a, I b) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
  }

  // One vpmaddubsw adds two products of at most kMax * 127: as many of them as fit 16 bits are
  // added up before they are widened.
  template <int kMax, int N, int G>
  FORETOKEN_INLINE void dot(I (&sum)[G], const I* w, const std::int8_t* x, int stride) {
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g)
      sum[g] = times_words<kMax, N>(sum[g], w, x + g * stride, _mm256_set1_epi16(1));
  }
  // A sub-block's scale is the factor that the words are widened with.
  template <int kMax, int N, int G, bool kOffset>
  FORETOKEN_INLINE void add_scaled_dot(I* sum, const I* w, const Record256* x, int first, I scale) {
    const I words = _mm256_or_si256(_mm256_and_si256(scale, _mm256_set1_epi32(0xffff)),
                                    _mm256_slli_epi32(scale, 16));
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) {
      if constexpr (kOffset)
        sum[g] = add_int(sum[g], multiply_int(scale, broadcast(&x[g].minus32_sum[first / 16])));
      sum[g] = times_words<kMax, N>(sum[g], w, x[g].q + first, words);
    }
  }
  template <int kMax, int N>
  FORETOKEN_INLINE I times_words(I sum, const I* w, const std::int8_t* x, I factor) {
    constexpr int kFit = 32767 / (kMax * 127 * 2);
    constexpr int kStep = kFit >= 8 ? 8 : kFit >= 4 ? 4 : kFit >= 2 ? 2 : 1;
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) {
      if constexpr (kMax == 255) {
        sum = add_int(sum, _mm256_madd_epi16(signed_products(w[j], x + 4 * j), factor));
      } else if (j % kStep == 0) {
        I words = _mm256_maddubs_epi16(w[j], broadcast_pair(x + 4 * j));
        for (int i = j + 1; i < j + kStep && i < N; ++i)
          words = _mm256_add_epi16(words, _mm256_maddubs_epi16(w[i], broadcast_pair(x + 4 * i)));
        sum = add_int(sum, _mm256_madd_epi16(words, factor));
      }
    }
    return sum;
  }
  // vpmaddubsw would saturate at codes up to 255: take |w| <= 128 and give x the sign of w instead.
  FORETOKEN_INLINE I load_q8(const void* p) { return _mm256_xor_si256(load(p), splat_byte(0x80)); }
  FORETOKEN_INLINE I byte_table(const std::int8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  FORETOKEN_INLINE I initial_q8(const Record32&) { return zero_int(); }
  FORETOKEN_INLINE I signed_products(I w, const std::int8_t* x) {
    return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(broadcast_pair(x), w));
  }
};

}  // namespace

void linear_groups_avx2(const LinearTask& task, std::int64_t first_group, std::int64_t last_group) {
  groups_of_type<Avx2>(task, first_group, last_group);
}

}  // namespace foretoken::kernels
