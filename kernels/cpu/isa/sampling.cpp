// Passes over the vocabulary, with the same result on every instruction set (simd.h). The noise
// itself is computed by gumbel.h, one token at a time, for the few tokens that can still win.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <utility>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gumbel.h"
#include "kernels/cpu/philox.h"
#include "kernels/cpu/simd.h"

namespace foretoken::kernels::FORETOKEN_ISA {
namespace {

constexpr std::int64_t kBlock = kLogitBlock;  // tokens a step: 16 Philox counters of four words

// NaN counts as less than everything.
FORETOKEN_INLINE float block_max(const float* x) {
  F32x16 m = splat(-__builtin_inff());
  for (int i = 0; i < kBlock; i += 16) m = larger(load_lanes<F32x16>(x + i), m);
  return max_lanes(m);
}

std::int32_t argmax_of(const float* x, std::int64_t n, const float* maxima) {
  const std::int64_t n_blocks = n / kBlock;
  float best = -__builtin_inff();
  std::int64_t at = 0, i = n_blocks * kBlock, block = -1;
  for (std::int64_t b = 0; b < n_blocks; ++b) {
    const float m = maxima ? maxima[b] : block_max(x + b * kBlock);
    if (m > best) {
      best = m;
      block = b;
    }
  }
  if (block >= 0) {
    at = block * kBlock;
    while (x[at] != best) ++at;
  }
  for (; i < n; ++i) {
    if (x[i] > best) {
      best = x[i];
      at = i;
    }
  }
  return static_cast<std::int32_t>(at);
}

// Products of the low halves of each 64-bit lane.
FORETOKEN_INLINE U64x8 multiply_low_halves(U64x8 a, std::uint32_t b) {
#if defined(__AVX512F__)
  return (U64x8)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#elif defined(__AVX2__)
  __m256i half[2];
  std::memcpy(half, &a, 64);
  for (__m256i& h : half) h = _mm256_mul_epu32(h, _mm256_set1_epi64x(b));
  return load_lanes<U64x8>(half);
#elif defined(__SSE2__)
  __m128i quarter[4];
  std::memcpy(quarter, &a, 64);
  for (__m128i& q : quarter) q = _mm_mul_epu32(q, _mm_set1_epi64x(b));
  return load_lanes<U64x8>(quarter);
#else
  return (a & 0xffffffffu) * b;
#endif
}

FORETOKEN_INLINE void multiply_wide(U32x16 a, std::uint32_t b, U32x16* high, U32x16* low) {
  const U64x8 even = multiply_low_halves((U64x8)a, b);
  const U64x8 odd = multiply_low_halves((U64x8)a >> 32, b);
  *high = (U32x16)((even >> 32) | (odd & 0xffffffff00000000u));
  *low = (U32x16)((even & 0xffffffffu) | (odd << 32));
}

// Philox of sixteen counters (c0[lane], 0, t): word[i] of lane l belongs to token 4 c0[l] + i.
FORETOKEN_INLINE void philox16(U32x16 c0, std::uint64_t position, std::uint64_t seed,
                               U32x16 (&word)[4]) {
  U32x16 c1{};
  U32x16 c2 = U32x16{} + static_cast<std::uint32_t>(position);
  U32x16 c3 = U32x16{} + static_cast<std::uint32_t>(position >> 32);
  auto key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    U32x16 high0, low0, high1, low1;
    multiply_wide(c0, kPhiloxMultiplier0, &high0, &low0);
    multiply_wide(c2, kPhiloxMultiplier1, &high1, &low1);
    c0 = high1 ^ c1 ^ key0;
    c1 = low1;
    c2 = high0 ^ c3 ^ key1;
    c3 = low0;
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  word[0] = c0;
  word[1] = c1;
  word[2] = c2;
  word[3] = c3;
}

FORETOKEN_INLINE std::uint32_t largest_word(const U32x16 (&word)[4]) {
  U32x16 m = word[0];
  for (int i = 1; i < 4; ++i) m = word[i] > m ? word[i] : m;
  return fold_lanes(reinterpret_cast<const std::uint32_t*>(&m),
                    [](auto a, auto b) { return a > b ? a : b; });
}

struct Best {
  double score = -__builtin_inf();
  std::int32_t id = -1;
  // Ties go to the lower id; NaN never wins.
  void offer(double candidate, std::int32_t candidate_id) {
    if (candidate > score || (candidate == score && candidate_id < id)) {
      score = candidate;
      id = candidate_id;
    }
  }
};

// Whether a token of scaled logit s and noise at most `bound` may reach `best`. Exact scores and
// this float sum differ by less than the slack for |s| below 2^13; above it, nothing is skipped.
FORETOKEN_INLINE bool may_win(float s, float bound, double best) {
  constexpr double kSlack = 1e-2;
  if (!(s < 8192.0f && s > -8192.0f)) return s > -8192.0f || best < -4096.0;
  return static_cast<double>(s) + static_cast<double>(bound) + kSlack >= best;
}

void offer_token(float s, std::uint32_t word, std::int32_t id, Best* best) {
  if (!may_win(s, gumbel_bound(word), best->score)) return;
  best->offer(static_cast<double>(s) + gumbel_of_word(word), id);
}

std::int32_t sample_full_of(const float* logits, std::int64_t n_vocab, float inv_temperature,
                            std::uint64_t seed, std::uint64_t position, const float* maxima) {
  const std::int32_t top = argmax_of(logits, n_vocab, maxima);
  if (inv_temperature == 0.0f) return top;
  // The most likely token's own score comes first: nearly every other block is then out of reach.
  Best best;
  best.id = top;
  offer_token(logits[top] * inv_temperature,
              words_of(seed, position, static_cast<std::uint32_t>(top)).word[top & 3], top, &best);
  std::int64_t v = 0;
  for (; v + kBlock <= n_vocab; v += kBlock) {
    // Rounding is monotone: the largest logit scales to the largest scaled logit.
    const float s = (maxima ? maxima[v / kBlock] : block_max(logits + v)) * inv_temperature;
    if (!may_win(s, kLargestGumbel, best.score)) continue;
    U32x16 word[4];
    constexpr U32x16 kLane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    philox16(kLane + static_cast<std::uint32_t>(v >> 2), position, seed, word);
    if (!may_win(s, gumbel_bound(largest_word(word)), best.score)) continue;
    std::uint32_t lane[4][16];
    std::memcpy(lane, word, sizeof lane);
    for (std::int64_t i = 0; i < kBlock; ++i)
      offer_token(logits[v + i] * inv_temperature, lane[i & 3][i >> 2],
                  static_cast<std::int32_t>(v + i), &best);
  }
  for (; v < n_vocab; ++v) {
    const float s = logits[v] * inv_temperature;
    if (!may_win(s, kLargestGumbel, best.score)) continue;
    const auto token = static_cast<std::uint32_t>(v);
    offer_token(s, words_of(seed, position, token).word[token & 3], static_cast<std::int32_t>(v),
                &best);
  }
  return best.id;
}

std::int32_t sample_subset_of(const float* logits, const std::int32_t* ids, std::int64_t n,
                              float inv_temperature, std::uint64_t seed, std::uint64_t position) {
  Best best;
  if (inv_temperature == 0.0f) {
    best.id = ids[0];
    for (std::int64_t i = 0; i < n; ++i) best.offer(static_cast<double>(logits[i]), ids[i]);
    return best.id;
  }
  const std::int32_t top = argmax_of(logits, n, nullptr);
  best.id = ids[top];
  auto offer = [&](std::int64_t i) {
    const float s = logits[i] * inv_temperature;
    if (!may_win(s, kLargestGumbel, best.score)) return;
    const auto token = static_cast<std::uint32_t>(ids[i]);
    offer_token(s, words_of(seed, position, token).word[token & 3], ids[i], &best);
  };
  offer(top);
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const float s = max_lanes(larger(load_lanes<F32x16>(logits + i), splat(-__builtin_inff()))) *
                    inv_temperature;
    if (!may_win(s, kLargestGumbel, best.score)) continue;
    const U32x16 token = load_lanes<U32x16>(ids + i), place = token & 3u;
    U32x16 word[4];
    philox16(token >> 2, position, seed, word);
    U32x16 own[4] = {};
    own[0] = place == 0u ? word[0] : place == 1u ? word[1] : place == 2u ? word[2] : word[3];
    if (!may_win(s, gumbel_bound(largest_word(own)), best.score)) continue;
    std::uint32_t lane[16];
    std::memcpy(lane, &own[0], sizeof lane);
    for (std::int64_t l = 0; l < 16; ++l)
      offer_token(logits[i + l] * inv_temperature, lane[l], ids[i + l], &best);
  }
  for (; i < n; ++i) offer(i);
  return best.id;
}

FORETOKEN_INLINE F64x8 widen(const F32x16& x, int half) {
  F32x8 part;
  std::memcpy(&part, reinterpret_cast<const char*>(&x) + 32 * half, 32);
  return __builtin_convertvector(part, F64x8);
}

// Sixteen partial sums in double, lane i taking elements i, i + 16, ...; the last, partial vector
// is filled up with minus infinity.
double log_sum_exp_of(const float* x, std::int64_t n, float scale) {
  const float minus_infinity = -__builtin_inff();
  auto load = [&](std::int64_t i) {
    if (i + 16 <= n) return load_lanes<F32x16>(x + i) * scale;
    F32x16 v = splat(minus_infinity);
    for (int j = 0; i + j < n; ++j) v[j] = x[i + j] * scale;
    return v;
  };
  F32x16 m = splat(minus_infinity);
  for (std::int64_t i = 0; i < n; i += 16) m = larger(load(i), m);
  const float largest = max_lanes(m);
  if (largest == minus_infinity) return largest;
  F64x8 low{}, high{};
  for (std::int64_t i = 0; i < n; i += 16) {
    const F32x16 e = exp_nonpositive(load(i) - largest);
    low += widen(e, 0);
    high += widen(e, 1);
  }
  const F64x8 both = low + high;
  double lane[8];
  std::memcpy(lane, &both, 64);
  for (int width = 4; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return static_cast<double>(largest) + log_double(lane[0]);
}

// e^(x * scale) for x * scale <= 0, relative error below 1e-6: 2^y = 2^n 2^f, n = floor(y), 2^f by
// the minimax polynomial of degree 5 on [0, 1).
constexpr float kPowerOfTwo[] = {0.99999994f, 0.6931531f,    0.24015361f,
                                 0.05582632f, 0.0089893397f, 0.0018775767f};
FORETOKEN_INLINE F32x16 fast_exp_nonpositive(F32x16 x, float scale) {
#if defined(__AVX512F__)
  // Minus infinity has f = 0, and 2^n = 0.
  const __m512 y = _mm512_mul_ps((__m512)x, _mm512_set1_ps(scale * 1.44269504f));
  const __m512 f = _mm512_reduce_ps(y, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 p = _mm512_set1_ps(kPowerOfTwo[5]);
  for (int i = 4; i >= 0; --i) p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(kPowerOfTwo[i]));
  return (F32x16)_mm512_scalef_ps(p, y);
#elif defined(__AVX2__)
  __m256 half[2];
  std::memcpy(half, &x, 64);
  for (__m256& h : half) {
    const __m256 y = _mm256_mul_ps(h, _mm256_set1_ps(scale * 1.44269504f));
    const __m256 n = _mm256_floor_ps(y), f = _mm256_sub_ps(y, n);
    __m256 p = _mm256_set1_ps(kPowerOfTwo[5]);
    for (int i = 4; i >= 0; --i) p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(kPowerOfTwo[i]));
    const __m256i power = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    p = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), power));
    h = _mm256_and_ps(p, _mm256_cmp_ps(y, _mm256_set1_ps(-125.0f), _CMP_GE_OQ));
  }
  return load_lanes<F32x16>(half);
#else
  return exp_nonpositive(x * scale);
#endif
}

// In float within steps of 1024 values, in double over them.
double approximate_log_sum_exp_of(const float* x, std::int64_t n, float scale) {
  constexpr std::int64_t kStep = 1024;
  F32x16 m = splat(-__builtin_inff());
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) m = larger(load_lanes<F32x16>(x + i), m);
  F32x16 last = splat(-__builtin_inff());
  for (std::int64_t j = i; j < n; ++j) last[j - i] = x[j];
  const float largest = max_lanes(larger(last, m));
  if (largest == -__builtin_inff()) return largest;
  double sum = 0;
  for (std::int64_t step = 0; step < i; step += kStep) {
    const std::int64_t end = step + kStep < i ? step + kStep : i;
    F32x16 even{}, odd{};
    std::int64_t at = step;
    for (; at + 32 <= end; at += 32) {
      even += fast_exp_nonpositive(load_lanes<F32x16>(x + at) - largest, scale);
      odd += fast_exp_nonpositive(load_lanes<F32x16>(x + at + 16) - largest, scale);
    }
    if (at < end) even += fast_exp_nonpositive(load_lanes<F32x16>(x + at) - largest, scale);
    sum += static_cast<double>(sum_lanes(even + odd));
  }
  if (i < n) sum += static_cast<double>(sum_lanes(fast_exp_nonpositive(last - largest, scale)));
  return static_cast<double>(largest * scale) + log_double(sum);
}

// Of sixteen vectors, the lanes of each folded into one, lane k the k-th's: halves onto halves, as
// sum_lanes() and max_lanes() have it, but two vectors with each instruction.
template <int kWidth, int kHalf, std::size_t... kLane>
FORETOKEN_INLINE I32x16 half_of_each(std::index_sequence<kLane...>) {
  return I32x16{static_cast<int>(kLane / 8 * 16 + kLane % 8 / kWidth * 2 * kWidth + kHalf * kWidth +
                                 kLane % kWidth)...};
}
template <int kWidth, class Fold>
FORETOKEN_INLINE void fold_halves(F32x16* v, const Fold& fold) {
  const I32x16 low = half_of_each<kWidth, 0>(std::make_index_sequence<16>());
  const I32x16 high = half_of_each<kWidth, 1>(std::make_index_sequence<16>());
  for (int i = 0; i < kWidth; ++i) {
    v[i] = fold(__builtin_shuffle(v[2 * i], v[2 * i + 1], low),
                __builtin_shuffle(v[2 * i], v[2 * i + 1], high));
  }
}
template <class Fold>
FORETOKEN_INLINE F32x16 fold_each(F32x16 (&v)[16], const Fold& fold) {
  fold_halves<8>(v, fold);
  fold_halves<4>(v, fold);
  fold_halves<2>(v, fold);
  fold_halves<1>(v, fold);
  return v[0];
}

// Sixteen blocks. A block of minus infinities (and NaN) alone has the sum 0, and so no part in the
// whole.
FORETOKEN_INLINE void summarise_blocks(const float* x, float* maxima, float* sums, float scale,
                                       float* scaled_sums) {
  const float minus_infinity = -__builtin_inff();
  F32x16 v[16];
  for (int b = 0; b < 16; ++b) {
    v[b] = splat(minus_infinity);
    for (int i = 0; i < kBlock; i += 16)
      v[b] = larger(load_lanes<F32x16>(x + b * kBlock + i), v[b]);
  }
  const F32x16 largest = fold_each(v, [](F32x16 a, F32x16 b) { return larger(a, b); });
  store_lanes(maxima, largest);
  const auto sum = [&](float s, float* to) {
    for (int b = 0; b < 16; ++b) {
      v[b] = F32x16{};
      for (int i = 0; i < kBlock; i += 16)
        v[b] += fast_exp_nonpositive(load_lanes<F32x16>(x + b * kBlock + i) - maxima[b], s);
    }
    const F32x16 each = fold_each(v, [](F32x16 a, F32x16 b) { return a + b; });
    store_lanes(to, largest > minus_infinity ? each : F32x16{});
  };
  if (sums) sum(1.0f, sums);
  if (scaled_sums) sum(scale, scaled_sums);
}

void logit_block_summary_of(const float* x, std::int64_t n, float* maxima, float* sums, float scale,
                            float* scaled_sums) {
  constexpr std::int64_t kStep = 16 * kBlock;
  std::int64_t at = 0, block = 0;
  for (; at + kStep <= n; at += kStep, block += 16) {
    summarise_blocks(x + at, maxima + block, sums ? sums + block : nullptr, scale,
                     scaled_sums ? scaled_sums + block : nullptr);
  }
  if (at == n) return;
  float rest[kStep], of_rest[3][16];
  for (std::int64_t i = 0; i < kStep; ++i) rest[i] = at + i < n ? x[at + i] : -__builtin_inff();
  summarise_blocks(rest, of_rest[0], sums ? of_rest[1] : nullptr, scale,
                   scaled_sums ? of_rest[2] : nullptr);
  for (std::int64_t i = 0; i < logit_blocks(n - at); ++i) {
    maxima[block + i] = of_rest[0][i];
    if (sums) sums[block + i] = of_rest[1][i];
    if (scaled_sums) scaled_sums[block + i] = of_rest[2][i];
  }
}

double log_sum_exp_of_blocks_of(const float* maxima, const float* sums, std::int64_t n_blocks,
                                float scale) {
  const float minus_infinity = -__builtin_inff();
  float largest = minus_infinity;
  for (std::int64_t b = 0; b < n_blocks; ++b) largest = maxima[b] > largest ? maxima[b] : largest;
  if (largest == minus_infinity) return largest;
  double sum = 0;
  for (std::int64_t b = 0; b < n_blocks; b += 16) {
    F32x16 m = splat(minus_infinity), part{};
    if (b + 16 <= n_blocks) {
      m = load_lanes<F32x16>(maxima + b);
      part = load_lanes<F32x16>(sums + b);
    } else {
      for (std::int64_t j = b; j < n_blocks; ++j) {
        m[j - b] = maxima[j];
        part[j - b] = sums[j];
      }
    }
    sum += static_cast<double>(sum_lanes(fast_exp_nonpositive(m - largest, scale) * part));
  }
  return static_cast<double>(largest * scale) + log_double(sum);
}

// How many of x[0 .. n) are at least `bound`.
FORETOKEN_INLINE std::int64_t count_from(const float* x, std::int64_t n, float bound) {
  I32x16 found{};
  std::int64_t i = 0, count = 0;
  for (; i + 16 <= n; i += 16) found -= (I32x16)(load_lanes<F32x16>(x + i) >= bound);
  for (; i < n; ++i) count += x[i] >= bound;
  for (int lane = 0; lane < 16; ++lane) count += found[lane];
  return count;
}

// No branch depends on a value but the blocks': a bound that about k of the maxima reach, by
// bisection; the values above it, in order of their ids; each one's rank among them by counting.
std::int64_t top_few_of(const float* x, std::int64_t n, std::int64_t k, std::int32_t* ids,
                        float* values, const float* maxima) {
  constexpr std::int64_t kMost = 1024;
  const std::int64_t n_blocks = n / kBlock;
  float low = __builtin_inff(), high = -__builtin_inff();
  std::int64_t finite = 0;
  for (std::int64_t b = 0; b < n_blocks; ++b) {
    const float m = maxima[b];
    const bool counts = m > -__builtin_inff() && m < __builtin_inff();
    finite += counts;
    low = counts && m < low ? m : low;
    high = counts && m > high ? m : high;
  }
  if (k > kFew || finite < k) return -1;
  for (int step = 0; step < 24; ++step) {
    const float middle = low + (high - low) * .5f;
    const std::int64_t count = count_from(maxima, n_blocks, middle);
    (count < k ? high : low) = middle;
    if (count >= k && count <= k + k / 8) break;
  }
  float value[kMost + kBlock];
  std::int32_t id[kMost + kBlock];
  std::int64_t m = 0;
  auto gather = [&](std::int64_t j, std::int64_t end) {
#if defined(__AVX512F__)
    for (; j + 16 <= end; j += 16) {
      const __m512 lanes = _mm512_loadu_ps(x + j);
      __mmask16 found = _mm512_cmp_ps_mask(lanes, _mm512_set1_ps(low), _CMP_GE_OQ);
      for (; found != 0; found = static_cast<__mmask16>(found & (found - 1))) {
        const std::int64_t at = j + __builtin_ctz(found);
        value[m] = x[at];
        id[m++] = static_cast<std::int32_t>(at);
      }
    }
#endif
    for (; j < end; ++j) {
      value[m] = x[j];
      id[m] = static_cast<std::int32_t>(j);
      m += x[j] >= low;
    }
  };
  for (std::int64_t b = 0; b < n_blocks; ++b) {
    if (!(maxima[b] >= low)) continue;
    if (m > kMost - kBlock) return -1;
    gather(b * kBlock, (b + 1) * kBlock);
  }
  gather(n_blocks * kBlock, n);
  if (m > kMost) return -1;
  while (m % 16 != 0) value[m++] = -__builtin_inff();
  for (std::int64_t i = 0; i < m; ++i) {
    if (!(value[i] >= low)) break;
    I32x16 above{};
    for (std::int64_t j = 0; j < m; j += 16) {
      const F32x16 other = load_lanes<F32x16>(value + j);
      above -= (I32x16)(other > value[i]);
      // Ties: whose id is lower. Of those, all in whole vectors before i's own...
      if (j + 16 <= i) above -= (I32x16)(other == value[i]);
    }
    std::int64_t rank = 0;
    for (int lane = 0; lane < 16; ++lane) rank += above[lane];
    // ... and those in i's.
    for (std::int64_t j = i / 16 * 16; j < i; ++j) rank += value[j] == value[i];
    if (rank >= k) continue;
    ids[rank] = id[i];
    values[rank] = value[i];
  }
  return k;
}

}  // namespace

constinit const SamplingOps kSampling = {sample_full_of,
                                         sample_subset_of,
                                         argmax_of,
                                         log_sum_exp_of,
                                         approximate_log_sum_exp_of,
                                         logit_block_summary_of,
                                         log_sum_exp_of_blocks_of,
                                         top_few_of};

}  // namespace foretoken::kernels::FORETOKEN_ISA
