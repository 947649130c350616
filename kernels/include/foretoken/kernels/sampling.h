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
// A uniform double in (0, 1) from an independent stream (rejection sampling): `stream` separates uses.
double uniform(std::uint64_t seed, std::uint64_t position, std::uint32_t stream);

// Over the whole vocabulary. inv_temperature = fl32(1/T); 0 means T = 0: plain argmax.
std::int32_t sample_full(const float* logits, std::int64_t n_vocab, float inv_temperature, std::uint64_t seed,
                         std::uint64_t position);
// Over a filtered set: logits[i] belongs to ids[i].
std::int32_t sample_subset(const float* logits, const std::int32_t* ids, std::int64_t n, float inv_temperature,
                           std::uint64_t seed, std::uint64_t position);

std::int32_t argmax(const float* x, std::int64_t n);                       // ties to the lower index
double log_sum_exp(const float* x, std::int64_t n, float scale);           // log sum exp(fl32(x * scale)); fixed order
// The same within 1e-5, several times as fast, not bit-equal among instruction sets: for what is
// reported and logged, never for what decides a token.
double approximate_log_sum_exp(const float* x, std::int64_t n, float scale);
// The k largest, by value descending, then id ascending. Writes min(k, n) entries, returns how many.
std::int64_t top_k(const float* x, std::int64_t n, std::int64_t k, std::int32_t* ids, float* values);

}  // namespace foretoken::kernels
