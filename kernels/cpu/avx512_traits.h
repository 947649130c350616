// What the two AVX-512 linear kernels share: everything but the integer dot products.
#pragma once

#include <immintrin.h>

#include "linear_tile.h"

namespace foretoken::kernels {
namespace {

struct Avx512Base {
  using F = __m512;
  using I = __m512i;
  static constexpr int kLanes = 16;
  static constexpr int kRows = 8;

  FORETOKEN_INLINE F zero() { return _mm512_setzero_ps(); }
  FORETOKEN_INLINE I zero_int() { return _mm512_setzero_si512(); }
  FORETOKEN_INLINE I load(const void* p) { return _mm512_loadu_si512(p); }
  FORETOKEN_INLINE F load_float(const float* p) { return _mm512_loadu_ps(p); }
  FORETOKEN_INLINE void store_float(float* p, F v) { _mm512_storeu_ps(p, v); }
  FORETOKEN_INLINE F load_half(const void* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  }
  FORETOKEN_INLINE F load_bfloat(const void* p) {
    const I wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  FORETOKEN_INLINE I load_u8(const void* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  FORETOKEN_INLINE I load_s8(const void* p) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  FORETOKEN_INLINE F broadcast(const float* p) { return _mm512_set1_ps(*p); }
  FORETOKEN_INLINE I broadcast(const std::int32_t* p) { return _mm512_set1_epi32(*p); }
  FORETOKEN_INLINE I broadcast_pair(const void* p) {
    std::int32_t v;
    __builtin_memcpy(&v, p, 4);
    return _mm512_set1_epi32(v);
  }
  FORETOKEN_INLINE F splat(float v) { return _mm512_set1_ps(v); }
  FORETOKEN_INLINE I splat_byte(int v) { return _mm512_set1_epi8(static_cast<char>(v)); }
  FORETOKEN_INLINE I splat_word(int v) { return _mm512_set1_epi16(static_cast<short>(v)); }
  FORETOKEN_INLINE I bit_and(I a, I b) { return _mm512_and_si512(a, b); }
  FORETOKEN_INLINE I or_masked(I a, I b, I mask) {
    return _mm512_ternarylogic_epi32(a, b, mask, 0xf8);  // a | (b & mask)
  }
  template <int N>
  FORETOKEN_INLINE I shift_right(I v) {
    return _mm512_srli_epi16(v, N);
  }
  template <int N>
  FORETOKEN_INLINE I shift_left(I v) {
    return _mm512_slli_epi32(v, N);
  }
  FORETOKEN_INLINE I shift_right_by(I v, int n) {
    return _mm512_srl_epi32(v, _mm_cvtsi32_si128(n));
  }
  template <int Shift, int Mask>
  FORETOKEN_INLINE I field(I v) {  // of each dword
    return _mm512_and_si512(_mm512_srli_epi32(v, Shift), _mm512_set1_epi32(Mask));
  }
  FORETOKEN_INLINE I add_int(I a, I b) { return _mm512_add_epi32(a, b); }
  FORETOKEN_INLINE I multiply_int(I a, I b) { return _mm512_mullo_epi32(a, b); }
  FORETOKEN_INLINE I look_up(I table, I index) { return _mm512_shuffle_epi8(table, index); }
  FORETOKEN_INLINE I signed_table(const std::int8_t* p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  FORETOKEN_INLINE F to_float(I v) { return _mm512_cvtepi32_ps(v); }
  FORETOKEN_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  FORETOKEN_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
  FORETOKEN_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  FORETOKEN_INLINE F negate(F a) { return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f)); }
};

}  // namespace
}  // namespace foretoken::kernels
