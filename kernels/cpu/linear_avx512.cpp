#include "avx512_traits.h"

namespace foretoken::kernels {
namespace {

// AVX-512 without VNNI: as AVX2, twice as wide.
struct Avx512 : Avx512Base {
  FORETOKEN_INLINE I dot_words(I sum, I a, I b) {
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
  }
  // See linear_avx2.cpp.
  template <int kMax, int N>
  FORETOKEN_INLINE I dot(I sum, const I* w, const std::int8_t* x) {
    constexpr int kFit = 32767 / (kMax * 127 * 2);
    constexpr int kStep = kFit >= 8 ? 8 : kFit >= 4 ? 4 : kFit >= 2 ? 2 : 1;
    const I ones = _mm512_set1_epi16(1);
#pragma GCC unroll 8
    for (int j = 0; j < N; j += kStep) {
      I words = _mm512_maddubs_epi16(w[j], broadcast_pair(x + 4 * j));
      for (int i = 1; i < kStep && j + i < N; ++i)
        words = _mm512_add_epi16(words,
                                 _mm512_maddubs_epi16(w[j + i], broadcast_pair(x + 4 * (j + i))));
      sum = _mm512_add_epi32(sum, _mm512_madd_epi16(words, ones));
    }
    return sum;
  }
  FORETOKEN_INLINE I load_q8(const void* p) { return _mm512_xor_si512(load(p), splat_byte(0x80)); }
  FORETOKEN_INLINE I dot_q8(const I (&w)[8], const Record32& x) {
    const I ones = _mm512_set1_epi16(1);
    I sum = zero_int();
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      const I q = broadcast_pair(x.q + 4 * j);
      const I signed_q = _mm512_mask_sub_epi8(q, _mm512_movepi8_mask(w[j]), zero_int(), q);
      const I words = _mm512_maddubs_epi16(_mm512_abs_epi8(w[j]), signed_q);
      sum = _mm512_add_epi32(sum, _mm512_madd_epi16(words, ones));
    }
    return sum;
  }
};

}  // namespace

void linear_groups_avx512(const LinearTask& task, std::int64_t first_group,
                          std::int64_t last_group) {
  groups_of_type<Avx512>(task, first_group, last_group);
}

}  // namespace foretoken::kernels
