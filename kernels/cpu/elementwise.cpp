#include "foretoken/kernels/elementwise.h"

#include <cmath>

#include "elementwise_body.h"
#include "foretoken/kernels/isa.h"

namespace foretoken::kernels {

const ElementwiseFunctions& elementwise_scalar() { return kFunctions; }

const ElementwiseFunctions& elementwise_active() {
  switch (active_isa()) {
    case Isa::kScalar:
      return elementwise_scalar();
    case Isa::kAvx2:
      return elementwise_avx2();
    default:
      return elementwise_avx512();
  }
}

void rms_norm(const float* x, std::int64_t x_stride, const float* weight, float epsilon,
              std::int64_t n_rows, std::int64_t width, float* y, std::int64_t y_stride) {
  elementwise_active().rms_norm(x, x_stride, weight, epsilon, n_rows, width, y, y_stride);
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
  elementwise_active().rope(x, n_heads, head_dim, rotary_dim, cos_sin, interleaved);
}

void swiglu(const float* gate, const float* up, std::int64_t n, float* y) {
  elementwise_active().swiglu(gate, up, n, y);
}

void add(const float* x, std::int64_t n, float* y) { elementwise_active().add(x, n, y); }

}  // namespace foretoken::kernels
