// Element-wise and quantising kernels, with the same result on every instruction set (simd.h).
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/half_rows.h"
#include "kernels/cpu/simd.h"

namespace foretoken::kernels::FORETOKEN_ISA {
namespace {

// The sum of squares in 128 partial sums, the i-th of elements i, i + 128, ... in order, folded
// halves onto halves: one definition for every instruction set and device (a GPU's block of 128
// threads, or eight vectors here, whose chains of adds are an eighth as long as one vector's).
float sum_of_squares(const float* x, std::int64_t n) {
  constexpr int kVectors = 8;
  F32x16 partial[kVectors] = {};
  std::int64_t i = 0;
  for (; i + 16 * kVectors <= n; i += 16 * kVectors) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      const auto v = load_lanes<F32x16>(x + i + 16 * j);
      partial[j] += v * v;
    }
  }
  for (int j = 0; i < n; ++j, i += 16) {
    F32x16 v{};
    std::memcpy(&v, x + i, static_cast<std::size_t>(n - i < 16 ? n - i : 16) * sizeof(float));
    partial[j] += v * v;
  }
  for (int width = kVectors / 2; width > 0; width /= 2)
    for (int j = 0; j < width; ++j) partial[j] += partial[j + width];
  return sum_lanes(partial[0]);
}

void rms_norm_rows(const float* x, std::int64_t x_stride, const float* weight, float epsilon,
                   std::int64_t n_rows, std::int64_t width, float* y, std::int64_t y_stride) {
  for (std::int64_t r = 0; r < n_rows; ++r, x += x_stride, y += y_stride) {
    const float mean = sum_of_squares(x, width) / static_cast<float>(width);
    const float scale = 1.0f / __builtin_sqrtf(mean + epsilon);
    std::int64_t i = 0;
    for (; i + 16 <= width; i += 16)
      store_lanes(y + i, load_lanes<F32x16>(x + i) * scale * load_lanes<F32x16>(weight + i));
    for (; i < width; ++i) y[i] = x[i] * scale * weight[i];
  }
}

// Written with explicit lanes and sums of products only: GCC 12's vectoriser turns a*c - b*s beside
// a*s + b*c into fused multiply-add-subtracts even with contraction off. Here a product with -s is
// added instead, which rounds alike.
FORETOKEN_INLINE void rotate_interleaved(float* x, const float* cos_sin, std::int64_t n_values) {
  F32x16 v{}, t{};
  const auto bytes = static_cast<std::size_t>(n_values) * sizeof(float);
  std::memcpy(&v, x, bytes);
  std::memcpy(&t, cos_sin, bytes);
  constexpr I32x16 kSwap = {1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14};
  constexpr I32x16 kEven = {0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14};
  constexpr I32x16 kMinusOnEven = {-0x7fffffff - 1, 0, -0x7fffffff - 1, 0, -0x7fffffff - 1, 0,
                                   -0x7fffffff - 1, 0, -0x7fffffff - 1, 0, -0x7fffffff - 1, 0,
                                   -0x7fffffff - 1, 0, -0x7fffffff - 1, 0};
  const F32x16 c = __builtin_shuffle(t, kEven), s = __builtin_shuffle(t, kEven + 1);
  v = v * c + __builtin_shuffle(v, kSwap) * (F32x16)((I32x16)s ^ kMinusOnEven);
  std::memcpy(x, &v, bytes);
}

FORETOKEN_INLINE void rotate_split(float* first, float* second, const float* cos_sin,
                                   std::int64_t n_pairs) {
  F32x16 a{}, b{}, low{}, high{};
  const auto bytes = static_cast<std::size_t>(n_pairs) * sizeof(float);
  std::memcpy(&a, first, bytes);
  std::memcpy(&b, second, bytes);
  const std::int64_t n_low = n_pairs < 8 ? n_pairs : 8;
  std::memcpy(&low, cos_sin, static_cast<std::size_t>(n_low) * 8);
  std::memcpy(&high, cos_sin + 2 * n_low, static_cast<std::size_t>(n_pairs - n_low) * 8);
  constexpr I32x16 kEven = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
  const F32x16 c = __builtin_shuffle(low, high, kEven), s = __builtin_shuffle(low, high, kEven + 1);
  const F32x16 new_a = a * c + b * -s, new_b = a * s + b * c;
  std::memcpy(first, &new_a, bytes);
  std::memcpy(second, &new_b, bytes);
}

void rope_row(float* x, int n_heads, int head_dim, int rotary_dim, const float* cos_sin,
              bool interleaved) {
  const int half = rotary_dim / 2;
  for (int h = 0; h < n_heads; ++h, x += head_dim) {
    if (interleaved) {
      int i = 0;
      for (; i + 16 <= 2 * half; i += 16) rotate_interleaved(x + i, cos_sin + i, 16);
      if (i < 2 * half) rotate_interleaved(x + i, cos_sin + i, 2 * half - i);
    } else {
      int i = 0;
      for (; i + 16 <= half; i += 16) rotate_split(x + i, x + i + half, cos_sin + 2 * i, 16);
      if (i < half) rotate_split(x + i, x + i + half, cos_sin + 2 * i, half - i);
    }
  }
}

// silu(g) = g / (1 + e^-g), with e = e^-|g| so that nothing overflows: g >= 0: g / (1 + e), else
// g * e / (1 + e).
FORETOKEN_INLINE F32x16 silu(F32x16 g) {
  const I32x16 negative = g < 0.0f;
  const F32x16 e = exp_nonpositive(negative ? g : -g);
  return (negative ? g * e : g) / (1.0f + e);
}

void swiglu_row(const float* gate, const float* up, std::int64_t n, float* y) {
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    store_lanes(y + i, silu(load_lanes<F32x16>(gate + i)) * load_lanes<F32x16>(up + i));
  if (i < n) {
    const auto bytes = static_cast<std::size_t>(n - i) * sizeof(float);
    F32x16 g{}, u{};
    std::memcpy(&g, gate + i, bytes);
    std::memcpy(&u, up + i, bytes);
    const F32x16 result = silu(g) * u;
    std::memcpy(y + i, &result, bytes);
  }
}

void add_row(const float* x, std::int64_t n, float* y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] += x[i];
}

FORETOKEN_INLINE F32x16 abs_lanes(F32x16 v) { return (F32x16)((I32x16)v & 0x7fffffff); }

// Below this absmax a block counts as zero: 127 / absmax must not overflow.
constexpr float kSmallest = 1e-30f;

struct BlockScale {
  float scale, inverse;
};
FORETOKEN_INLINE BlockScale block_scale(float absmax) {
  if (!(absmax >= kSmallest)) return {0.0f, 0.0f};
  return {absmax / 127.0f, 127.0f / absmax};
}

// Sixteen values to int8; returns their sum.
FORETOKEN_INLINE std::int32_t quantize16(F32x16 x, float inverse, std::int8_t* q) {
  const I32x16 code = round_to_int(x * inverse);
  store_lanes(q, __builtin_convertvector(code, I8x16));
  return fold_lanes(reinterpret_cast<const std::int32_t*>(&code),
                    [](auto a, auto b) { return a + b; });
}

void quantize_row32(const float* x, std::int64_t n_in, Record32* out, std::int64_t out_stride) {
  for (std::int64_t i = 0; i < n_in; i += 32, out += out_stride) {
    const F32x16 a = load_lanes<F32x16>(x + i), b = load_lanes<F32x16>(x + i + 16);
    const BlockScale s = block_scale(max_lanes(larger(abs_lanes(a), abs_lanes(b))));
    const std::int32_t sum =
        quantize16(a, s.inverse, out->q) + quantize16(b, s.inverse, out->q + 16);
    out->scale = s.scale;
    out->scaled_sum = s.scale * static_cast<float>(sum);
    out->minus8_sum = -8 * sum;
    out->minus128_sum = -128 * sum;
  }
}

void quantize_row256(const float* x, std::int64_t n_in, Record256* out, std::int64_t out_stride) {
  constexpr int kPairPlace[8] = {0, 2, 1, 3, 4, 6, 5, 7};
  for (std::int64_t i = 0; i < n_in; i += 256, out += out_stride) {
    F32x16 m{};
    for (int j = 0; j < 256; j += 16) m = larger(abs_lanes(load_lanes<F32x16>(x + i + j)), m);
    const BlockScale s = block_scale(max_lanes(m));
    std::int32_t sum[16];
    for (int j = 0; j < 16; ++j) {
      sum[j] = quantize16(load_lanes<F32x16>(x + i + 16 * j), s.inverse, out->q + 16 * j);
      out->minus32_sum[j] = -32 * sum[j];
    }
    for (int j = 0; j < 8; ++j)
      out->pair_sum[kPairPlace[j]] = static_cast<std::int16_t>(sum[2 * j] + sum[2 * j + 1]);
    out->scale = s.scale;
  }
}

}  // namespace

constinit const ElementwiseOps kElementwise = {rms_norm_rows,  rope_row,       swiglu_row,
                                               add_row,        encode_half_of, decode_half_of,
                                               quantize_row32, quantize_row256};

}  // namespace foretoken::kernels::FORETOKEN_ISA
