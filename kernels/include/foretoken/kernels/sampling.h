// Drafter-invariant sampling: the arithmetic that makes output independent of what was drafted.
//   score(v) = double(fl32(logit_v * fl32(1/T))) + g(s, t, v);  g = -log(-log u)
//   u = (w + 0.5) * 2^-32, w: 32 bits of Philox4x32-10 with key s over the counter of (t, v):
//   counter = (v >> 2, 0, t_low, t_high), word v & 3. Logarithms by our own polynomial, in double,
//   contraction off: bit-equal on every ISA and device. Highest score wins, ties to the lower id.
#pragma once

#include <cstddef>
#include <cstdint>

namespace foretoken::kernels {

double gumbel(std::uint64_t seed, std::uint64_t position, std::uint32_t token);
// A uniform double in (0, 1) from an independent stream (rejection sampling): `stream` separates
// uses.
double uniform(std::uint64_t seed, std::uint64_t position, std::uint32_t stream);

// What linear() leaves of a row of logits while they are in the cache of the thread that computed
// them, one value for each 64 of them (the last block may be shorter): maxima [logit_blocks(n)],
// NaN counting as minus infinity, and sums of exp(logit - the block's maximum), also of both times
// a scale (1/T). Whoever has them need not read the row again to find its largest values or its
// normalisers.
inline constexpr std::int64_t kLogitBlock = 64;
constexpr std::int64_t logit_blocks(std::int64_t n) { return (n + kLogitBlock - 1) / kLogitBlock; }
// Of x[0 .. n); sums (of scale 1) and scaled_sums (of `scale` > 0) may be null.
void logit_block_summary(const float* x, std::int64_t n, float* maxima, float* sums,
                         float scale = 1, float* scaled_sums = nullptr);
// log sum exp(x * scale) from the summary with the sums of that scale, within 1e-5.
double log_sum_exp_of_blocks(const float* maxima, const float* sums, std::int64_t n_blocks,
                             float scale);

// Over the whole vocabulary. inv_temperature = fl32(1/T); 0 means T = 0: plain argmax. maxima: of
// the row, or null.
std::int32_t sample_full(const float* logits, std::int64_t n_vocab, float inv_temperature,
                         std::uint64_t seed, std::uint64_t position, const float* maxima = nullptr);
// Over a filtered set: logits[i] belongs to ids[i].
std::int32_t sample_subset(const float* logits, const std::int32_t* ids, std::int64_t n,
                           float inv_temperature, std::uint64_t seed, std::uint64_t position);

// Ties to the lower index. maxima: of the row, or null.
std::int32_t argmax(const float* x, std::int64_t n, const float* maxima = nullptr);
double log_sum_exp(const float* x, std::int64_t n,
                   float scale);  // log sum exp(fl32(x * scale)); fixed order
// The same within 1e-5, several times as fast, not bit-equal among instruction sets: for what is
// reported and logged, never for what decides a token.
double approximate_log_sum_exp(const float* x, std::int64_t n, float scale);
// The k largest, by value descending, then id ascending. Writes min(k, n) entries, returns how
// many. maxima: of the row, or null.
std::int64_t top_k(const float* x, std::int64_t n, std::int64_t k, std::int32_t* ids, float* values,
                   const float* maxima = nullptr);

}  // namespace foretoken::kernels
