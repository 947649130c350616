// Sealing a page, compiled once an ISA from this one source. Sixteen-lane vectors of plain IEEE
// operations (no FMA, contraction off): every ISA computes the same bits, which is how codes and
// scales stay equal.
#pragma once

#include "foretoken/kernels/kv_page.h"
#include "kernels/cpu/kv_page_layout.h"

namespace foretoken::kernels {
namespace {

typedef float Lanes __attribute__((vector_size(64)));
typedef float LanesUnaligned __attribute__((vector_size(64), aligned(4)));
typedef int IntLanes __attribute__((vector_size(64)));

// Steps of a uniform quantiser with the least squared error on a unit Gaussian (4 and 16 levels;
// Max 1960): a channel's static step is this times its deviation, so a channel in units of its step
// has deviation 1/this.
constexpr float kStep2 = 0.9957f, kStep4 = 0.3352f;
// Rounds of (codes for the scale, least-squares scale for the codes). On Gaussian rows of 64 to 128
// channels the third round changes fewer than one code in a thousand.
constexpr int kScaleRounds = 3;

// A fixed tree: lanes 8 apart, 4, 2, 1.
inline float sum_lanes(const float* x) {
  float a[8], b[4];
  for (int i = 0; i < 8; ++i) a[i] = x[i] + x[i + 8];
  for (int i = 0; i < 4; ++i) b[i] = a[i] + a[i + 4];
  return (b[0] + b[2]) + (b[1] + b[3]);
}

// y [64, d] = x [64, d] times m [d, d]; products added in ascending order of the inner index.
inline void encode(const float* x, const float* m, int d, float* y) {
  for (int t = 0; t < kPageTokens; t += 4) {
    for (int i = 0; i < d; i += 16) {
      Lanes a0 = {}, a1 = {}, a2 = {}, a3 = {};
      const float* x0 = x + static_cast<std::size_t>(t) * d;
      for (int j = 0; j < d; ++j) {
        const Lanes w =
            *reinterpret_cast<const LanesUnaligned*>(m + static_cast<std::size_t>(j) * d + i);
        a0 += w * x0[j];
        a1 += w * x0[d + j];
        a2 += w * x0[2 * d + j];
        a3 += w * x0[3 * d + j];
      }
      float* out = y + static_cast<std::size_t>(t) * d + i;
      *reinterpret_cast<LanesUnaligned*>(out) = a0;
      *reinterpret_cast<LanesUnaligned*>(out + d) = a1;
      *reinterpret_cast<LanesUnaligned*>(out + 2 * d) = a2;
      *reinterpret_cast<LanesUnaligned*>(out + 3 * d) = a3;
    }
  }
}

// Codes of one row of channels: floor(x / s) + half the levels, clamped to the channel's levels.
// `low` is -levels/2 by channel (-8, -2 or 0 for a channel without bits), `high` levels/2 - 1 (7,
// 1, -1: its centred code is then -0 + 0.5 - 0.5 = 0). centred = floor(...) + 0.5.
inline void centred_codes(const float* x, const float* low, const float* high, float inverse_scale,
                          int d, float* centred) {
  for (int i = 0; i < d; ++i) {
    float f = __builtin_floorf(x[i] * inverse_scale);
    f = f > low[i] ? f : low[i];  // a NaN becomes the lowest code
    f = f < high[i] ? f : high[i];
    centred[i] = f + 0.5f;
  }
}

// One row: the least-squares scale (fp16) and the digits [d], 0..3.
inline std::uint16_t quantise_row(const float* x, const float* weight, const float* low,
                                  const float* high, float expected, int n4, int d, bool max_scale,
                                  std::uint8_t* digits) {
  float centred[kMaxHeadDim];
  const int n_coded = d - n4;
  alignas(64) float part[16] = {}, part2[16] = {};
  for (int i = 0; i < n_coded; ++i) part[i & 15] += weight[i] * (x[i] * x[i]);
  float scale = __builtin_sqrtf(sum_lanes(part) / expected);
  if (max_scale) {
    scale = 0;
    for (int i = 0; i < n_coded; ++i) {
      const float reach = __builtin_fabsf(x[i]) / (high[i] + 0.5f);
      scale = reach > scale ? reach : scale;
    }
  }
  for (int round = 0; !max_scale && round < kScaleRounds && scale > 0; ++round) {
    centred_codes(x, low, high, 1.0f / scale, n_coded, centred);
    for (int l = 0; l < 16; ++l) part[l] = part2[l] = 0;
    for (int i = 0; i < n_coded; ++i) {
      const float wc = weight[i] * centred[i];
      part[i & 15] += wc * x[i];
      part2[i & 15] += wc * centred[i];
    }
    scale = sum_lanes(part) / sum_lanes(part2);
  }
  const std::uint16_t half = scale_to_half(scale);
  const float stored = half_to_scale(half);
  centred_codes(x, low, high, stored > 0 ? 1.0f / stored : 0.0f, n_coded, centred);
  for (int i = 0; i < n4; ++i) {
    const int code = static_cast<int>(centred[i] + 7.5f);
    digits[i] = static_cast<std::uint8_t>(code >> 2);
    digits[n4 + i] = static_cast<std::uint8_t>(code & 3);
  }
  for (int i = n4; i < n_coded; ++i)
    digits[n4 + i] = static_cast<std::uint8_t>(static_cast<int>(centred[i] + 1.5f));
  return half;
}

inline void quantise_rows(const float* x, const float* weight, int n4, int d, bool max_scale,
                          std::uint16_t* scales, std::uint8_t* digits) {
  float low[kMaxHeadDim], high[kMaxHeadDim];
  float expected = 0;
  for (int i = 0; i < d - n4; ++i) {
    low[i] = i < n4 ? -8.0f : -2.0f;
    high[i] = i < n4 ? 7.0f : 1.0f;
    const float step = i < n4 ? kStep4 : kStep2;
    expected += weight[i] / (step * step);
  }
  for (int t = 0; t < kPageTokens; ++t) {
    scales[t] = expected > 0
                    ? quantise_row(x + static_cast<std::size_t>(t) * d, weight, low, high, expected,
                                   n4, d, max_scale, digits + static_cast<std::size_t>(t) * d)
                    : 0;
  }
}

inline void seal_page_impl(const std::byte* hot, const Int2Transform& transform, int d,
                           std::byte* sealed) {
  if (d <= 0 || d > kMaxHeadDim) __builtin_unreachable();  // kv_cache.h checks it
  alignas(64) float x[kPageTokens * kMaxHeadDim];
  alignas(64) float y[kPageTokens * kMaxHeadDim];
  std::uint8_t digits[kPageTokens * kMaxHeadDim] = {};
  std::uint16_t scales[kPageTokens];
  std::memset(sealed, 0, sealed_k_scales(d));

  // K: less the page's mean, as stored.
  float mean[kMaxHeadDim] = {};
  for (int t = 0; t < kPageTokens; ++t) {
    for (int c = 0; c < d; ++c) {
      std::uint16_t h;
      std::memcpy(&h, hot + hot_k_offset(d, t, c), 2);
      x[t * d + c] = bf16_to_float(h);
      mean[c] += x[t * d + c];
    }
  }
  for (int c = 0; c < d; ++c) {
    const std::uint16_t h = transform.k_page_mean
                                ? float_to_bf16_finite(mean[c] * (1.0f / kPageTokens))
                                : std::uint16_t{0};
    std::memcpy(sealed + sealed_k_mean(d) + 2 * c, &h, 2);
    mean[c] = bf16_to_float(h);
  }
  for (int t = 0; t < kPageTokens; ++t) {
    for (int c = 0; c < d; ++c) x[t * d + c] -= mean[c];
  }
  encode(x, transform.k_encode, d, y);
  quantise_rows(y, transform.k_weight, transform.k_n4, d, transform.max_scale, scales, digits);
  std::memcpy(sealed + sealed_k_scales(d), scales, sizeof scales);
  for (int t = 0; t < kPageTokens; ++t) {
    for (int i = 0; i < d; ++i) {
      const std::size_t at =
          static_cast<std::size_t>((t / 16) * (d / 16) + i / 16) * 64 + code_byte(t % 16, i % 16);
      sealed[at] |= static_cast<std::byte>(digits[t * d + i] << code_shift(i % 16));
    }
  }

  // V: less the constant mean.
  for (int t = 0; t < kPageTokens; ++t) {
    for (int c = 0; c < d; ++c) {
      std::uint16_t h;
      std::memcpy(&h, hot + hot_v_offset(d, t) + 2 * c, 2);
      x[t * d + c] = bf16_to_float(h) - transform.v_mean[c];
    }
  }
  encode(x, transform.v_encode, d, y);
  quantise_rows(y, transform.v_weight, transform.v_n4, d, transform.max_scale, scales, digits);
  std::memcpy(sealed + sealed_v_scales(d), scales, sizeof scales);
  for (int t = 0; t < kPageTokens; ++t) {
    for (int i = 0; i < d; ++i) {
      const std::size_t at = sealed_v_codes(d) +
                             static_cast<std::size_t>((t / 16) * (d / 16) + i / 16) * 64 +
                             code_byte(i % 16, t % 16);
      sealed[at] |= static_cast<std::byte>(digits[t * d + i] << code_shift(t % 16));
    }
  }
}

}  // namespace
}  // namespace foretoken::kernels
