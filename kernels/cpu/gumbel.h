// The exact noise of one token, from its 32 random bits, and bounds on it. Plain double arithmetic,
// contraction off: the same bits wherever it is compiled.
#pragma once

#include <cstdint>

namespace foretoken::kernels {

// ln x of a normal x > 0. x = 2^e m, m in [sqrt(1/2), sqrt 2), ln m = 2 atanh(s), s = (m-1)/(m+1),
// |s| <= 0.1716: the series' term 11 is below 2^-56 of the first. Relative error below 2^-50, near
// 1 too.
double log_double(double x);

// -log(-log u), u = (word + 0.5) * 2^-32.
double gumbel_of_word(std::uint32_t word);

// The largest value of gumbel_of_word (word 2^32 - 1) is 33 ln 2 = 22.87.
inline constexpr float kLargestGumbel = 22.9f;

// Not less than gumbel_of_word(word): -log u >= 1 - u, so g <= -ln(1 - u) = 32 ln 2 - ln(c + 0.5)
// with c = 2^32 - 1 - word; and log2(1 + f) >= f bounds ln c from below by the bits of c as a
// float. The slack covers the rounding of these few float operations (each below 32 * 2^-24).
float gumbel_bound(std::uint32_t word);

}  // namespace foretoken::kernels
