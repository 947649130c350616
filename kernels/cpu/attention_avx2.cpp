#include <immintrin.h>

#include "kernels/cpu/attention_impl.h"

namespace foretoken::kernels {
namespace {

struct Avx2 {
  // Sixteen registers: 3 rows x 2 vectors of sums, 4 of K or V, and room for broadcasts.
  static constexpr int kLanes = 8, kTile = 2, kRowTile = 4, kCodeRowTile = kRowTile;
  static constexpr bool kTileSums = false;
  using F = __m256;
  using I = __m256i;
  static F set(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F subtract(F a, F b) { return _mm256_sub_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F abs(F a) { return _mm256_andnot_ps(set(-0.0f), a); }
  static F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F scale_by_power(F p, F n) {
    const I bits =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(p, _mm256_castsi256_ps(bits));
  }
  static F zero_below(F x, float limit, F y) {
    return _mm256_and_ps(y, _mm256_cmp_ps(x, set(limit), _CMP_GE_OQ));
  }
  static float sum(F a) {
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
  }
  static float largest(F a) {
    const __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
  }
  static I load_int(const std::byte* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static F bf16_low(I x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); }
  static F bf16_high(I x) {
    return _mm256_castsi256_ps(
        _mm256_and_si256(x, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  static F load_bf16(const std::byte* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(
        _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
  }
  static F load_half(const std::byte* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static I set_int(std::int32_t x) { return _mm256_set1_epi32(x); }
  static void store_int(std::int32_t* p, I x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x);
  }
  static I round_to_int(F x) { return _mm256_cvtps_epi32(x); }
  static F to_float(I x) { return _mm256_cvtepi32_ps(x); }
  static I sub(I a, I b) { return _mm256_sub_epi32(a, b); }
  static I add_int(I a, I b) { return _mm256_add_epi32(a, b); }
  static I twice(I a) { return _mm256_add_epi32(a, a); }
  static I shift_left8(I a) { return _mm256_slli_epi32(a, 8); }
  template <int kBits>
  static I low_bits(I x) {
    if constexpr (kBits == 8) return x;
    return _mm256_and_si256(x, _mm256_set1_epi8((1 << kBits) - 1));
  }
  template <int kBits>
  static I shift_right(I x) {
    return _mm256_srli_epi16(x, kBits);
  }
  static I broadcast4(const std::int8_t* p) {
    std::int32_t x;
    std::memcpy(&x, p, 4);
    return _mm256_set1_epi32(x);
  }
  // Adds to each lane four products of a code and a signed byte.
  template <int kBits>
  static I dot(I sum, I codes, I x) {
    const I ones = _mm256_set1_epi16(1);
    // Two products of at most 15 * 128 fit 16 bits; eight bits go in two halves.
    if constexpr (kBits < 8)
      return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), ones));
    const I low = _mm256_madd_epi16(_mm256_maddubs_epi16(low_bits<4>(codes), x), ones);
    const I high =
        _mm256_madd_epi16(_mm256_maddubs_epi16(low_bits<4>(_mm256_srli_epi16(codes, 4)), x), ones);
    return _mm256_add_epi32(_mm256_add_epi32(sum, low), _mm256_slli_epi32(high, 4));
  }
  static void store_bytes(std::int8_t* p, I x) {  // each lane fits a byte
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
  }
  static std::int32_t sum_int(I x) {
    std::int32_t lanes[8];
    store_int(lanes, x);
    std::int32_t total = 0;
    for (const std::int32_t lane : lanes) total += lane;
    return total;
  }
  // w [n] times `inverse`, rounded, as 256 high + low; their sum.
  static std::int32_t split(const float* w, int n, float inverse, int most, std::int8_t* high,
                            std::int8_t* low) {
    I sum = _mm256_setzero_si256();
    for (int t = 0; t < n; t += 8) {
      const I x =
          _mm256_min_epi32(_mm256_cvtps_epi32(mul(load(w + t), set(inverse))), set_int(most));
      const I h = _mm256_srai_epi32(_mm256_add_epi32(x, set_int(128)), 8);
      sum = _mm256_add_epi32(sum, x);
      store_bytes(high + t, h);
      store_bytes(low + t, _mm256_sub_epi32(x, _mm256_slli_epi32(h, 8)));
    }
    return sum_int(sum);
  }
};

}  // namespace

const AttentionTable kAttentionAvx2 = attention_table<Avx2>();

}  // namespace foretoken::kernels
