// Number formats that leave the process or come back: fp16 with a scale (hidden states in traces)
// and Q8_0 and Q4_0 blocks (learned weights in bundles). Written in integers and exact float steps,
// so that the bytes are the same on every instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace foretoken::kernels {

// out[i] = fp16(x[i] / scale), nearest, ties to even. scale: the power of two that brings the
// largest magnitude into [1, 2), so that dividing is exact and the only rounding is fp16's; 1 for a
// row of zeros. What is not finite becomes 0.
void encode_half(const float* x, std::int64_t n, std::uint16_t* out, float* scale);
// out[i] = x[i] * scale.
void decode_half(const std::uint16_t* x, float scale, std::int64_t n, float* out);

// Blocks of 32 values: fp16 d = fp16(max |x| / 127), then int8 codes round(x / d), ties away from
// zero. n: a multiple of 32. out: n / 32 * 34 bytes.
void quantize_q8_0(const float* x, std::int64_t n, std::byte* out);
// Blocks of 32 values d (q - 8), q in [0, 16): fp16 d, then 16 bytes, the low halves for values 0
// to 15. d: of 24 between a sixth and a ninth of the largest value, of either sign, that of least
// squared error; values that are such a block's already come back as they are. n: a multiple of 32.
// out: n / 32 * 18 bytes.
void quantize_q4_0(const float* x, std::int64_t n, std::byte* out);

}  // namespace foretoken::kernels
