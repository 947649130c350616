#include "foretoken/kernels/sampling.h"

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gumbel.h"
#include "kernels/cpu/philox.h"

namespace foretoken::kernels {

double gumbel(std::uint64_t seed, std::uint64_t position, std::uint32_t token) {
  return gumbel_of_word(words_of(seed, position, token).word[token & 3]);
}

// The second counter word is 1 where gumbel() has 0, so no block is shared. 52 bits: (n + 0.5) *
// 2^-52 is exact, and neither 0 nor 1.
double uniform(std::uint64_t seed, std::uint64_t position, std::uint32_t stream) {
  const PhiloxBlock b =
      philox4x32({{stream, 1, static_cast<std::uint32_t>(position),
                   static_cast<std::uint32_t>(position >> 32)}},
                 static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32));
  const std::uint64_t n = (std::uint64_t{b.word[0]} << 32 | b.word[1]) >> 12;
  return (static_cast<double>(n) + 0.5) * 0x1p-52;
}

std::int32_t sample_full(const float* logits, std::int64_t n_vocab, float inv_temperature,
                         std::uint64_t seed, std::uint64_t position, const float* maxima) {
  return cpu_ops().sampling.sample_full(logits, n_vocab, inv_temperature, seed, position, maxima);
}

std::int32_t sample_subset(const float* logits, const std::int32_t* ids, std::int64_t n,
                           float inv_temperature, std::uint64_t seed, std::uint64_t position) {
  return cpu_ops().sampling.sample_subset(logits, ids, n, inv_temperature, seed, position);
}

std::int32_t argmax(const float* x, std::int64_t n, const float* maxima) {
  return cpu_ops().sampling.argmax(x, n, maxima);
}

void logit_block_summary(const float* x, std::int64_t n, float* maxima, float* sums, float scale,
                         float* scaled_sums) {
  cpu_ops().sampling.logit_block_summary(x, n, maxima, sums, scale, scaled_sums);
}

double log_sum_exp_of_blocks(const float* maxima, const float* sums, std::int64_t n_blocks,
                             float scale) {
  return cpu_ops().sampling.log_sum_exp_of_blocks(maxima, sums, n_blocks, scale);
}

double log_sum_exp(const float* x, std::int64_t n, float scale) {
  return cpu_ops().sampling.log_sum_exp(x, n, scale);
}

double approximate_log_sum_exp(const float* x, std::int64_t n, float scale) {
  return cpu_ops().sampling.approximate_log_sum_exp(x, n, scale);
}

}  // namespace foretoken::kernels
