#include "avx512_traits.h"

namespace foretoken::kernels {
namespace {

// AVX-512 without VNNI: as AVX2, twice as wide.
struct Avx512 : Avx512Base {
  static constexpr int kDotRows = 1;
  static constexpr bool kFloatSums =
      false;  // a scale costs nothing: it is what words are widened with
  FORETOKEN_INLINE I dot_words(I sum, I a, I b) {
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
  }
  // See linear_avx2.cpp.
  template <int kMax, int N, int G>
  FORETOKEN_INLINE void dot(I (&sum)[G], const I* w, const std::int8_t* x, int stride) {
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g)
      sum[g] = times_words<kMax, N>(sum[g], w, x + g * stride, _mm512_set1_epi16(1));
  }
  // A sub-block's scale is the factor that the words are widened with.
  template <int kMax, int N, int G, bool kOffset>
  FORETOKEN_INLINE void add_scaled_dot(I* sum, const I* w, const Record256* x, int first, I scale) {
    const I words = _mm512_or_si512(_mm512_and_si512(scale, _mm512_set1_epi32(0xffff)),
                                    _mm512_slli_epi32(scale, 16));
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
        sum = add_int(sum, _mm512_madd_epi16(signed_products(w[j], x + 4 * j), factor));
      } else if (j % kStep == 0) {
        I words = _mm512_maddubs_epi16(w[j], broadcast_pair(x + 4 * j));
        for (int i = j + 1; i < j + kStep && i < N; ++i)
          words = _mm512_add_epi16(words, _mm512_maddubs_epi16(w[i], broadcast_pair(x + 4 * i)));
        sum = add_int(sum, _mm512_madd_epi16(words, factor));
      }
    }
    return sum;
  }
  FORETOKEN_INLINE I load_q8(const void* p) { return _mm512_xor_si512(load(p), splat_byte(0x80)); }
  FORETOKEN_INLINE I byte_table(const std::int8_t* p) { return signed_table(p); }
  FORETOKEN_INLINE I initial_q8(const Record32&) { return zero_int(); }
  FORETOKEN_INLINE I signed_products(I w, const std::int8_t* x) {
    const I q = broadcast_pair(x);
    const I signed_q = _mm512_mask_sub_epi8(q, _mm512_movepi8_mask(w), zero_int(), q);
    return _mm512_maddubs_epi16(_mm512_abs_epi8(w), signed_q);
  }
};

}  // namespace

void linear_groups_avx512(const LinearTask& task, std::int64_t first_group,
                          std::int64_t last_group) {
  groups_of_type<Avx512>(task, first_group, last_group);
}

}  // namespace foretoken::kernels
