// Norms, rotary embedding, SwiGLU, softmax weights, residual adds. All row-wise: a row's result
// never depends on its neighbours. Strides are in floats.
#pragma once

#include <cstdint>

namespace foretoken::kernels {

// y[r] = x[r] / rms(x[r]) * weight, rms = sqrt(mean(x^2) + epsilon). May be in place.
void rms_norm(const float* x, std::int64_t x_stride, const float* weight, float epsilon,
              std::int64_t n_rows, std::int64_t width, float* y, std::int64_t y_stride);

// Rotary embedding, in place, on x: [n_heads, head_dim] of one row at `position`.
// cos_sin: [rotary_dim / 2, 2] for that position, from rope_table(). interleaved: pairs (2i, 2i+1)
// as in Llama GGUF files; otherwise (i, i + rotary_dim/2) as in Qwen2.
void rope_table(std::int64_t position, int rotary_dim, float theta,
                const float* frequency_factors /*or null*/, float* cos_sin);
void rope(float* x, int n_heads, int head_dim, int rotary_dim, const float* cos_sin,
          bool interleaved);

// y = silu(gate) * up, [n] each; y may alias gate.
void swiglu(const float* gate, const float* up, std::int64_t n, float* y);
// x[i] = e^((x[i] - largest) * scale), largest >= x[i], scale > 0: by the kernels' own polynomial,
// relative error below 2e-7; 0 below e^-87.
void softmax_weights(float* x, std::int64_t n, float largest, float scale);
// y += x
void add(const float* x, std::int64_t n, float* y);

}  // namespace foretoken::kernels
