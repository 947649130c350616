// The vectors of the CPU kernels, in two widths.
//
// Fixed: sixteen lanes in GCC's vector extension. The same source compiles to SSE, AVX2 or AVX-512
// and, since contraction is off and the lane order is written out, gives the same bits on each.
// Native: `Simd`, the vector type of the instruction set this file is compiled for (eight lanes of
// AVX2, sixteen of AVX-512, one where there is neither), by its own instructions.
//
// Everything here has internal linkage: a translation unit compiled for a wide instruction set must
// not lend its copy of an inline function to a narrower one.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

#include "kernels/layout/half.h"

namespace foretoken::kernels {
namespace {

// Never a function of its own.
#define FORETOKEN_INLINE __attribute__((always_inline, unused)) inline

typedef float F32x16 __attribute__((vector_size(64)));
typedef std::int32_t I32x16 __attribute__((vector_size(64)));
typedef std::uint32_t U32x16 __attribute__((vector_size(64)));
typedef double F64x8 __attribute__((vector_size(64)));
typedef std::uint64_t U64x8 __attribute__((vector_size(64)));
typedef float F32x8 __attribute__((vector_size(32)));
typedef std::int8_t I8x16 __attribute__((vector_size(16)));

template <class V>
FORETOKEN_INLINE V load_lanes(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
FORETOKEN_INLINE void store_lanes(void* p, V v) {
  std::memcpy(p, &v, sizeof v);
}
FORETOKEN_INLINE F32x16 splat(float x) { return x - F32x16{}; }
FORETOKEN_INLINE F32x16 larger(F32x16 a, F32x16 b) { return a > b ? a : b; }

// Round to nearest, ties to even, for |x| < 2^22: adding 1.5 * 2^23 leaves the integer in the low
// bits.
FORETOKEN_INLINE I32x16 round_to_int(F32x16 x) { return (I32x16)(x + 12582912.0f) - 0x4b400000; }

// e^x for x <= 0; 0 below -87. x = n ln2 + r, |r| <= ln2/2; Taylor to r^7, whose next term is below
// 2^-27 of the sum; 2^n by its bit pattern. Relative error below 2e-7.
FORETOKEN_INLINE F32x16 exp_nonpositive(F32x16 x) {
  const I32x16 tiny = x < -87.0f;
  x = tiny ? splat(-87.0f) : x;
  const F32x16 shifted = x * 1.44269504f + 12582912.0f;
  const F32x16 n = shifted - 12582912.0f;
  const I32x16 exponent = (I32x16)shifted - 0x4b400000;
  // ln2 in two parts: n * 0.693359375 is exact (|n| < 2^7, nine-bit constant).
  const F32x16 r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  F32x16 p = r * (1.0f / 5040) + (1.0f / 720);
  p = p * r + (1.0f / 120);
  p = p * r + (1.0f / 24);
  p = p * r + (1.0f / 6);
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const F32x16 power = (F32x16)((exponent + 127) << 23);
  return tiny ? F32x16{} : p * power;
}

// Sixteen lanes folded into one, halves onto halves.
template <class T, class Fold>
FORETOKEN_INLINE T fold_lanes(const T* x, Fold fold) {
  T lane[16];
  std::memcpy(lane, x, sizeof lane);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] = fold(lane[i], lane[i + width]);
  return lane[0];
}
FORETOKEN_INLINE float sum_lanes(const F32x16& v) {
  return fold_lanes(reinterpret_cast<const float*>(&v), [](float a, float b) { return a + b; });
}
FORETOKEN_INLINE float max_lanes(const F32x16& v) {
  return fold_lanes(reinterpret_cast<const float*>(&v),
                    [](float a, float b) { return a > b ? a : b; });
}

#if defined(__AVX512F__)

struct Simd {
  using F = __m512;
  using I = __m512i;
  using Half = __m256i;  // sixteen bits a lane
  static constexpr int kLanes = 16;

  static FORETOKEN_INLINE F set(float x) { return _mm512_set1_ps(x); }
  static FORETOKEN_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
  static FORETOKEN_INLINE void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static FORETOKEN_INLINE F load_half(const void* p) { return _mm512_cvtph_ps(load_words(p)); }
  static FORETOKEN_INLINE F load_bf16(const void* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_words(p)), 16));
  }
  static FORETOKEN_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static FORETOKEN_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static FORETOKEN_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
  static FORETOKEN_INLINE F subtract(F a, F b) { return _mm512_sub_ps(a, b); }
  static FORETOKEN_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
  static FORETOKEN_INLINE F abs(F a) { return _mm512_abs_ps(a); }
  static FORETOKEN_INLINE F negate(F a) { return _mm512_xor_ps(a, set(-0.0f)); }
  static FORETOKEN_INLINE F round(F a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static FORETOKEN_INLINE F zero_below(F x, float limit, F y) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, set(limit), _CMP_GE_OQ), y);
  }
  static FORETOKEN_INLINE float sum(F a) {
    const __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
  }
  static FORETOKEN_INLINE float largest(F a) { return _mm512_reduce_max_ps(a); }

  static FORETOKEN_INLINE I set_int(std::int32_t x) { return _mm512_set1_epi32(x); }
  static FORETOKEN_INLINE I set_word(int x) { return _mm512_set1_epi16(static_cast<short>(x)); }
  static FORETOKEN_INLINE I set_byte(int x) { return _mm512_set1_epi8(static_cast<char>(x)); }
  static FORETOKEN_INLINE I load_int(const void* p) { return _mm512_loadu_si512(p); }
  static FORETOKEN_INLINE void store_int(std::int32_t* p, I x) { _mm512_storeu_si512(p, x); }
  static FORETOKEN_INLINE I load_u8(const void* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  static FORETOKEN_INLINE I load_s8(const void* p) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  static FORETOKEN_INLINE I byte_table(const std::int8_t* p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static FORETOKEN_INLINE I look_up(I table, I index) { return _mm512_shuffle_epi8(table, index); }
  static FORETOKEN_INLINE F bits_to_float(I x) { return _mm512_castsi512_ps(x); }
  static FORETOKEN_INLINE F to_float(I x) { return _mm512_cvtepi32_ps(x); }
  static FORETOKEN_INLINE I round_to_int(F x) { return _mm512_cvtps_epi32(x); }
  static FORETOKEN_INLINE I add_int(I a, I b) { return _mm512_add_epi32(a, b); }
  static FORETOKEN_INLINE I sub(I a, I b) { return _mm512_sub_epi32(a, b); }
  static FORETOKEN_INLINE I multiply_int(I a, I b) { return _mm512_mullo_epi32(a, b); }
  static FORETOKEN_INLINE I min_int(I a, I b) { return _mm512_min_epi32(a, b); }
  static FORETOKEN_INLINE I bit_and(I a, I b) { return _mm512_and_si512(a, b); }
  static FORETOKEN_INLINE I bit_or(I a, I b) { return _mm512_or_si512(a, b); }
  static FORETOKEN_INLINE I bit_xor(I a, I b) { return _mm512_xor_si512(a, b); }
  static FORETOKEN_INLINE I or_masked(I a, I b, I mask) {
    return _mm512_ternarylogic_epi32(a, b, mask, 0xf8);  // a | (b & mask)
  }
  template <int N>
  static FORETOKEN_INLINE I shift_left(I x) {
    return _mm512_slli_epi32(x, N);
  }
  template <int N>
  static FORETOKEN_INLINE I shift_right(I x) {
    return _mm512_srli_epi32(x, N);
  }
  template <int N>
  static FORETOKEN_INLINE I shift_right_signed(I x) {
    return _mm512_srai_epi32(x, N);
  }
  static FORETOKEN_INLINE I shift_right_by(I x, int n) {
    return _mm512_srl_epi32(x, _mm_cvtsi32_si128(n));
  }
  // Of words: what leaves one never reaches its neighbour.
  template <int N>
  static FORETOKEN_INLINE I shift_words_right(I x) {
    return _mm512_srli_epi16(x, N);
  }
  static FORETOKEN_INLINE void store_bytes(std::int8_t* p, I x) {  // each lane fits a byte
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x));
  }
  static FORETOKEN_INLINE std::int32_t sum_int(I x) { return _mm512_reduce_add_epi32(x); }

  // Words: sums of two products of an unsigned byte of a and a signed one of b, saturated.
  static FORETOKEN_INLINE I byte_products(I a, I b) { return _mm512_maddubs_epi16(a, b); }
  // The same with a signed in [-128, 127], b not -128.
  static FORETOKEN_INLINE I signed_byte_products(I a, I b) {
    const I signed_b = _mm512_mask_sub_epi8(b, _mm512_movepi8_mask(a), _mm512_setzero_si512(), b);
    return _mm512_maddubs_epi16(_mm512_abs_epi8(a), signed_b);
  }
  static FORETOKEN_INLINE I add_words(I a, I b) { return _mm512_add_epi16(a, b); }
  // sum plus, a lane, two products of words.
  static FORETOKEN_INLINE I add_word_products(I sum, I a, I b) {
#if defined(__AVX512VNNI__)
    return _mm512_dpwssd_epi32(sum, a, b);
#else
    return add_int(sum, _mm512_madd_epi16(a, b));
#endif
  }

 private:
  static FORETOKEN_INLINE Half load_words(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
};

#elif defined(__AVX2__)

struct Simd {
  using F = __m256;
  using I = __m256i;
  using Half = __m128i;  // sixteen bits a lane
  static constexpr int kLanes = 8;

  static FORETOKEN_INLINE F set(float x) { return _mm256_set1_ps(x); }
  static FORETOKEN_INLINE F load(const float* p) { return _mm256_loadu_ps(p); }
  static FORETOKEN_INLINE void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static FORETOKEN_INLINE F load_half(const void* p) { return _mm256_cvtph_ps(load_words(p)); }
  static FORETOKEN_INLINE F load_bf16(const void* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_words(p)), 16));
  }
  static FORETOKEN_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static FORETOKEN_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static FORETOKEN_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
  static FORETOKEN_INLINE F subtract(F a, F b) { return _mm256_sub_ps(a, b); }
  static FORETOKEN_INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
  static FORETOKEN_INLINE F abs(F a) { return _mm256_andnot_ps(set(-0.0f), a); }
  static FORETOKEN_INLINE F negate(F a) { return _mm256_xor_ps(a, set(-0.0f)); }
  static FORETOKEN_INLINE F round(F a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static FORETOKEN_INLINE F zero_below(F x, float limit, F y) {
    return _mm256_and_ps(y, _mm256_cmp_ps(x, set(limit), _CMP_GE_OQ));
  }
  static FORETOKEN_INLINE float sum(F a) {
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
  }
  static FORETOKEN_INLINE float largest(F a) {
    const __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
  }

  static FORETOKEN_INLINE I set_int(std::int32_t x) { return _mm256_set1_epi32(x); }
  static FORETOKEN_INLINE I set_word(int x) { return _mm256_set1_epi16(static_cast<short>(x)); }
  static FORETOKEN_INLINE I set_byte(int x) { return _mm256_set1_epi8(static_cast<char>(x)); }
  static FORETOKEN_INLINE I load_int(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static FORETOKEN_INLINE void store_int(std::int32_t* p, I x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x);
  }
  static FORETOKEN_INLINE I load_u8(const void* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
  }
  static FORETOKEN_INLINE I load_s8(const void* p) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
  }
  static FORETOKEN_INLINE I byte_table(const std::int8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static FORETOKEN_INLINE I look_up(I table, I index) { return _mm256_shuffle_epi8(table, index); }
  static FORETOKEN_INLINE F bits_to_float(I x) { return _mm256_castsi256_ps(x); }
  static FORETOKEN_INLINE F to_float(I x) { return _mm256_cvtepi32_ps(x); }
  static FORETOKEN_INLINE I round_to_int(F x) { return _mm256_cvtps_epi32(x); }
  static FORETOKEN_INLINE I add_int(I a, I b) { return _mm256_add_epi32(a, b); }
  static FORETOKEN_INLINE I sub(I a, I b) { return _mm256_sub_epi32(a, b); }
  static FORETOKEN_INLINE I multiply_int(I a, I b) { return _mm256_mullo_epi32(a, b); }
  static FORETOKEN_INLINE I min_int(I a, I b) { return _mm256_min_epi32(a, b); }
  static FORETOKEN_INLINE I bit_and(I a, I b) { return _mm256_and_si256(a, b); }
  static FORETOKEN_INLINE I bit_or(I a, I b) { return _mm256_or_si256(a, b); }
  static FORETOKEN_INLINE I bit_xor(I a, I b) { return _mm256_xor_si256(a, b); }
  static FORETOKEN_INLINE I or_masked(I a, I b, I mask) { return bit_or(a, bit_and(b, mask)); }
  template <int N>
  static FORETOKEN_INLINE I shift_left(I x) {
    return _mm256_slli_epi32(x, N);
  }
  template <int N>
  static FORETOKEN_INLINE I shift_right(I x) {
    return _mm256_srli_epi32(x, N);
  }
  template <int N>
  static FORETOKEN_INLINE I shift_right_signed(I x) {
    return _mm256_srai_epi32(x, N);
  }
  static FORETOKEN_INLINE I shift_right_by(I x, int n) {
    return _mm256_srl_epi32(x, _mm_cvtsi32_si128(n));
  }
  // Of words: what leaves one never reaches its neighbour.
  template <int N>
  static FORETOKEN_INLINE I shift_words_right(I x) {
    return _mm256_srli_epi16(x, N);
  }
  static FORETOKEN_INLINE void store_bytes(std::int8_t* p, I x) {  // each lane fits a byte
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
  }
  static FORETOKEN_INLINE std::int32_t sum_int(I x) {
    std::int32_t lanes[8];
    store_int(lanes, x);
    std::int32_t total = 0;
    for (const std::int32_t lane : lanes) total += lane;
    return total;
  }

  // Words: sums of two products of an unsigned byte of a and a signed one of b, saturated.
  static FORETOKEN_INLINE I byte_products(I a, I b) { return _mm256_maddubs_epi16(a, b); }
  // The same with a signed in [-128, 127], b not -128.
  static FORETOKEN_INLINE I signed_byte_products(I a, I b) {
    return _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(b, a));
  }
  static FORETOKEN_INLINE I add_words(I a, I b) { return _mm256_add_epi16(a, b); }
  // sum plus, a lane, two products of words.
  static FORETOKEN_INLINE I add_word_products(I sum, I a, I b) {
    return add_int(sum, _mm256_madd_epi16(a, b));
  }

 private:
  static FORETOKEN_INLINE Half load_words(const void* p) {
    return _mm_loadu_si128(static_cast<const __m128i*>(p));
  }
};

#else

struct Simd {
  using F = float;
  using I = std::int32_t;
  static constexpr int kLanes = 1;

  static FORETOKEN_INLINE F set(float x) { return x; }
  static FORETOKEN_INLINE F load(const float* p) { return *p; }
  static FORETOKEN_INLINE void store(float* p, F x) { *p = x; }
  static FORETOKEN_INLINE F load_half(const void* p) { return half_to_float(load_word(p)); }
  static FORETOKEN_INLINE F load_bf16(const void* p) { return bf16_to_float(load_word(p)); }
  static FORETOKEN_INLINE F fma(F a, F b, F c) { return a * b + c; }
  static FORETOKEN_INLINE F mul(F a, F b) { return a * b; }
  static FORETOKEN_INLINE F add(F a, F b) { return a + b; }
  static FORETOKEN_INLINE F subtract(F a, F b) { return a - b; }
  static FORETOKEN_INLINE F max(F a, F b) { return a > b ? a : b; }
  static FORETOKEN_INLINE F abs(F a) { return a < 0 ? -a : a; }
  static FORETOKEN_INLINE F round(F a) { return __builtin_nearbyintf(a); }
  static FORETOKEN_INLINE F zero_below(F x, float limit, F y) { return x < limit ? 0.0f : y; }
  static FORETOKEN_INLINE float sum(F a) { return a; }
  static FORETOKEN_INLINE float largest(F a) { return a; }

  static FORETOKEN_INLINE I set_int(std::int32_t x) { return x; }
  static FORETOKEN_INLINE I set_byte(int x) { return static_cast<I>(0x01010101u * (x & 255)); }
  static FORETOKEN_INLINE I load_int(const void* p) { return load_lanes<I>(p); }
  static FORETOKEN_INLINE void store_int(std::int32_t* p, I x) { *p = x; }
  static FORETOKEN_INLINE F bits_to_float(I x) { return float_of(static_cast<std::uint32_t>(x)); }
  static FORETOKEN_INLINE F to_float(I x) { return static_cast<float>(x); }
  static FORETOKEN_INLINE I round_to_int(F x) { return static_cast<I>(__builtin_nearbyintf(x)); }
  static FORETOKEN_INLINE I add_int(I a, I b) { return a + b; }
  static FORETOKEN_INLINE I sub(I a, I b) { return a - b; }
  static FORETOKEN_INLINE I min_int(I a, I b) { return a < b ? a : b; }
  static FORETOKEN_INLINE I bit_and(I a, I b) { return a & b; }
  template <int N>
  static FORETOKEN_INLINE I shift_left(I x) {
    return static_cast<I>(static_cast<std::uint32_t>(x) << N);
  }
  template <int N>
  static FORETOKEN_INLINE I shift_right_signed(I x) {
    return x >> N;
  }
  template <int N>
  static FORETOKEN_INLINE I shift_words_right(I x) {
    return static_cast<I>(static_cast<std::uint32_t>(x) >> N);
  }
  static FORETOKEN_INLINE void store_bytes(std::int8_t* p, I x) {
    *p = static_cast<std::int8_t>(x);
  }
  static FORETOKEN_INLINE std::int32_t sum_int(I x) { return x; }

 private:
  static FORETOKEN_INLINE std::uint16_t load_word(const void* p) {
    return load_lanes<std::uint16_t>(p);
  }
};

#endif

// What all three have alike.

FORETOKEN_INLINE Simd::I broadcast4(const void* p) {
  return Simd::set_int(load_lanes<std::int32_t>(p));
}

FORETOKEN_INLINE Simd::I twice(Simd::I x) { return Simd::add_int(x, x); }

template <int kBits>  // of each byte
FORETOKEN_INLINE Simd::I low_bits(Simd::I x) {
  if constexpr (kBits == 8) return x;
  return Simd::bit_and(x, Simd::set_byte((1 << kBits) - 1));
}

// Adds to each lane four products of a code of kBits and a signed byte.
template <int kBits>
FORETOKEN_INLINE Simd::I add_products(Simd::I sum, Simd::I codes, Simd::I x) {
#if defined(__AVX512VNNI__)
  return _mm512_dpbusd_epi32(sum, codes, x);
#elif defined(__AVX2__)
  const auto products = [&](Simd::I four_bits) __attribute__((always_inline)) {
    return Simd::add_word_products(Simd::set_int(0), Simd::byte_products(four_bits, x),
                                   Simd::set_word(1));
  };
  // Two products of at most 15 * 128 fit 16 bits; eight bits go in two halves.
  if constexpr (kBits < 8) return Simd::add_int(sum, products(codes));
  const Simd::I mask = Simd::set_byte(15);
  const Simd::I low = products(Simd::bit_and(codes, mask));
  const Simd::I high = products(Simd::bit_and(Simd::shift_words_right<4>(codes), mask));
  return Simd::add_int(Simd::add_int(sum, low), Simd::shift_left<4>(high));
#else
  for (int b = 0; b < 4; ++b) {
    sum += static_cast<std::uint8_t>(static_cast<std::uint32_t>(codes) >> (8 * b)) *
           static_cast<std::int8_t>(static_cast<std::uint32_t>(x) >> (8 * b));
  }
  return sum;
#endif
}

// w [n] times `inverse`, rounded and at most `most`, as 256 high + low; their sum.
FORETOKEN_INLINE std::int32_t split_words(const float* w, int n, float inverse, int most,
                                          std::int8_t* high, std::int8_t* low) {
  Simd::I sum = Simd::set_int(0);
  for (int t = 0; t < n; t += Simd::kLanes) {
    const Simd::I x = Simd::min_int(
        Simd::round_to_int(Simd::mul(Simd::load(w + t), Simd::set(inverse))), Simd::set_int(most));
    const Simd::I h = Simd::shift_right_signed<8>(Simd::add_int(x, Simd::set_int(128)));
    sum = Simd::add_int(sum, x);
    Simd::store_bytes(high + t, h);
    Simd::store_bytes(low + t, Simd::sub(x, Simd::shift_left<8>(h)));
  }
  return Simd::sum_int(sum);
}

}  // namespace
}  // namespace foretoken::kernels
