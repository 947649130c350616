#include "foretoken/kernels/elementwise.h"

#include <cmath>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/simd.h"

namespace foretoken::kernels {

void rms_norm(const float* x, std::int64_t x_stride, const float* weight, float epsilon,
              std::int64_t n_rows, std::int64_t width, float* y, std::int64_t y_stride) {
  cpu_ops().elementwise.rms_norm(x, x_stride, weight, epsilon, n_rows, width, y, y_stride);
}

// In double: at position 100,000 a float angle would be off by 0.004.
void rope_table(std::int64_t position, int rotary_dim, float theta, const float* frequency_factors,
                float* cos_sin) {
  for (int i = 0; i < rotary_dim / 2; ++i) {
    double frequency = std::pow(static_cast<double>(theta), -2.0 * i / rotary_dim);
    if (frequency_factors != nullptr) frequency /= static_cast<double>(frequency_factors[i]);
    const double angle = static_cast<double>(position) * frequency;
    cos_sin[2 * i] = static_cast<float>(std::cos(angle));
    cos_sin[2 * i + 1] = static_cast<float>(std::sin(angle));
  }
}

void rope(float* x, int n_heads, int head_dim, int rotary_dim, const float* cos_sin,
          bool interleaved) {
  cpu_ops().elementwise.rope(x, n_heads, head_dim, rotary_dim, cos_sin, interleaved);
}

void swiglu(const float* gate, const float* up, std::int64_t n, float* y) {
  cpu_ops().elementwise.swiglu(gate, up, n, y);
}

// The baseline's vectors: a head's window is short, and its weights are the same on every set.
void softmax_weights(float* x, std::int64_t n, float largest, float scale) {
  for (std::int64_t i = 0; i < n; i += 16) {
    const std::size_t bytes = static_cast<std::size_t>(n - i < 16 ? n - i : 16) * sizeof(float);
    F32x16 v = splat(largest);
    std::memcpy(&v, x + i, bytes);
    v = exp_nonpositive((v - largest) * scale);
    std::memcpy(x + i, &v, bytes);
  }
}

void add(const float* x, std::int64_t n, float* y) { cpu_ops().elementwise.add(x, n, y); }

}  // namespace foretoken::kernels
