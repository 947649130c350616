// Sixteen lanes; kVnni: vpdpbusd, else its three-instruction equal. Included by the two AVX-512
// files.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/attention_impl.h"

namespace foretoken::kernels {
namespace {

template <bool kVnni>
struct Avx512 {
  // Thirty-two registers: 5 rows x 4 vectors of sums, 4 to 8 of K or V, broadcasts from memory.
  // Four vectors are a page's 64 tokens, so that even one row has four independent chains.
  // Over codes six rows fit, the heads of a group in many models: 6 x 4 sums, 4 vectors of codes.
  static constexpr int kLanes = 16, kTile = 4, kRowTile = 5, kCodeRowTile = 6;
  static constexpr bool kTileSums = false;
  using F = __m512;
  using I = __m512i;
  static F set(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F subtract(F a, F b) { return _mm512_sub_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F abs(F a) { return _mm512_abs_ps(a); }
  static F round(F a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static F scale_by_power(F p, F n) {
    const I bits =
        _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23);
    return _mm512_mul_ps(p, _mm512_castsi512_ps(bits));
  }
  static F zero_below(F x, float limit, F y) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, set(limit), _CMP_GE_OQ), y);
  }
  static float sum(F a) {
    const __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
  }
  static float largest(F a) { return _mm512_reduce_max_ps(a); }
  static I load_int(const std::byte* p) { return _mm512_loadu_si512(p); }
  static I load_lanes(const std::int32_t* p) { return _mm512_loadu_si512(p); }
  static F bf16_low(I x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }
  static F bf16_high(I x) {
    return _mm512_castsi512_ps(
        _mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  static F load_bf16(const std::byte* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
  }
  static F load_half(const std::byte* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static I set_int(std::int32_t x) { return _mm512_set1_epi32(x); }
  static void store_int(std::int32_t* p, I x) { _mm512_storeu_si512(p, x); }
  static I round_to_int(F x) { return _mm512_cvtps_epi32(x); }
  static F to_float(I x) { return _mm512_cvtepi32_ps(x); }
  static I sub(I a, I b) { return _mm512_sub_epi32(a, b); }
  static I add_int(I a, I b) { return _mm512_add_epi32(a, b); }
  static I twice(I a) { return _mm512_add_epi32(a, a); }
  static I shift_left8(I a) { return _mm512_slli_epi32(a, 8); }
  template <int kBits>
  static I low_bits(I x) {
    if constexpr (kBits == 8) return x;
    return _mm512_and_si512(x, _mm512_set1_epi8((1 << kBits) - 1));
  }
  template <int kBits>
  static I shift_right(I x) {
    return _mm512_srli_epi16(x, kBits);
  }
  static I broadcast4(const std::int8_t* p) {
    std::int32_t x;
    std::memcpy(&x, p, 4);
    return _mm512_set1_epi32(x);
  }
  // Adds to each lane four products of a code and a signed byte.
  template <int kBits>
  static I dot(I sum, I codes, I x) {
#ifdef __AVX512VNNI__
    if constexpr (kVnni) return _mm512_dpbusd_epi32(sum, codes, x);
#endif
    const I ones = _mm512_set1_epi16(1);
    // Two products of at most 15 * 128 fit 16 bits; eight bits go in two halves.
    if constexpr (kBits < 8)
      return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(codes, x), ones));
    const I low = _mm512_madd_epi16(_mm512_maddubs_epi16(low_bits<4>(codes), x), ones);
    const I high =
        _mm512_madd_epi16(_mm512_maddubs_epi16(low_bits<4>(_mm512_srli_epi16(codes, 4)), x), ones);
    return _mm512_add_epi32(_mm512_add_epi32(sum, low), _mm512_slli_epi32(high, 4));
  }
  static void store_bytes(std::int8_t* p, I x) {  // each lane fits a byte
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x));
  }
  static std::int32_t sum_int(I x) { return _mm512_reduce_add_epi32(x); }
  // w [n] times `inverse`, rounded, as 256 high + low; their sum.
  static std::int32_t split(const float* w, int n, float inverse, int most, std::int8_t* high,
                            std::int8_t* low) {
    I sum = _mm512_setzero_si512();
    for (int t = 0; t < n; t += 16) {
      const I x =
          _mm512_min_epi32(_mm512_cvtps_epi32(mul(load(w + t), set(inverse))), set_int(most));
      const I h = _mm512_srai_epi32(_mm512_add_epi32(x, set_int(128)), 8);
      sum = _mm512_add_epi32(sum, x);
      store_bytes(high + t, h);
      store_bytes(low + t, _mm512_sub_epi32(x, _mm512_slli_epi32(h, 8)));
    }
    return sum_int(sum);
  }
};

}  // namespace
}  // namespace foretoken::kernels
