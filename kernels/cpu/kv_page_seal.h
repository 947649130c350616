// Sealing a page, compiled once an ISA from this one source. Sixteen-lane vectors of plain IEEE
// operations (no FMA, contraction off): every ISA computes the same bits, which is how codes and
// scales stay equal.
#pragma once

#include "foretoken/kernels/kv_page.h"
#include "kernels/cpu/kv_page_layout.h"

namespace foretoken::kernels {
namespace {

// The width changes no bits: a lane is one output.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Lanes __attribute__((vector_size(kLanes * 4)));
typedef float LanesUnaligned __attribute__((vector_size(kLanes * 4), aligned(4)));

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
  constexpr int kRows = 8;  // independent chains of adds
  for (int t = 0; t < kPageTokens; t += kRows) {
    for (int i = 0; i < d; i += kLanes) {
      Lanes sum[kRows] = {};
      const float* rows = x + static_cast<std::size_t>(t) * d;
      for (int j = 0; j < d; ++j) {
        const Lanes w =
            *reinterpret_cast<const LanesUnaligned*>(m + static_cast<std::size_t>(j) * d + i);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) sum[r] += w * rows[r * d + j];
      }
      float* out = y + static_cast<std::size_t>(t) * d + i;
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) *reinterpret_cast<LanesUnaligned*>(out + r * d) = sum[r];
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

// One row: the least-squares scale (fp16) and the digits [d], 0..3. `weight` is 0 for channels
// without bits.
inline std::uint16_t quantise_row(const float* x, const float* weight, const float* low,
                                  const float* high, float expected, int n4, int d, bool max_scale,
                                  std::uint8_t* digits) {
  float centred[kMaxHeadDim];
  const int n_coded = d - n4;
  float scale = 0;
  if (max_scale) {
    for (int i = 0; i < n_coded; ++i) {
      const float reach = __builtin_fabsf(x[i]) / (high[i] + 0.5f);
      scale = reach > scale ? reach : scale;
    }
  } else {
    alignas(64) float part[16] = {};
    for (int i = 0; i < d; i += 16) {
      for (int l = 0; l < 16; ++l) part[l] += weight[i + l] * (x[i + l] * x[i + l]);
    }
    scale = __builtin_sqrtf(sum_lanes(part) / expected);
    for (int round = 0; round < kScaleRounds && scale > 0; ++round) {
      centred_codes(x, low, high, 1.0f / scale, d, centred);
      alignas(64) float with_x[16] = {}, with_code[16] = {};
      for (int i = 0; i < d; i += 16) {
        for (int l = 0; l < 16; ++l) {
          const float wc = weight[i + l] * centred[i + l];
          with_x[l] += wc * x[i + l];
          with_code[l] += wc * centred[i + l];
        }
      }
      scale = sum_lanes(with_x) / sum_lanes(with_code);
    }
  }
  const std::uint16_t half = scale_to_half(scale);
  const float stored = half_to_scale(half);
  centred_codes(x, low, high, stored > 0 ? 1.0f / stored : 0.0f, d, centred);
  for (int i = 0; i < n4; ++i) {
    const int code = static_cast<int>(centred[i] + 7.5f);
    digits[i] = static_cast<std::uint8_t>(code >> 2);
    digits[n4 + i] = static_cast<std::uint8_t>(code & 3);
  }
  for (int i = n4; i < n_coded; ++i) {
    digits[n4 + i] = static_cast<std::uint8_t>(static_cast<int>(centred[i] + 1.5f));
  }
  return half;
}

inline void quantise_rows(const float* x, const float* channel_weight, int n4, int d,
                          bool max_scale, std::uint16_t* scales, std::uint8_t* digits) {
  float low[kMaxHeadDim], high[kMaxHeadDim], weight[kMaxHeadDim];
  float expected = 0;
  for (int i = 0; i < d; ++i) {
    const bool coded = i < d - n4;
    low[i] = i < n4 ? -8.0f : coded ? -2.0f : 0.0f;
    high[i] = i < n4 ? 7.0f : coded ? 1.0f : 0.0f;
    weight[i] = coded ? channel_weight[i] : 0.0f;
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

// digits [64, d] into groups of 64 bytes, each byte four digits of one lane (kv_page_layout.h).
inline void pack_k(const std::uint8_t* digits, int d, std::byte* codes) {
  for (int t = 0; t < kPageTokens; ++t, digits += d) {
    for (int g = 0; g < d / 16; ++g) {
      const std::uint8_t* x = digits + g * 16;
      std::byte* at = codes + static_cast<std::size_t>(t / 16 * (d / 16) + g) * 64 + t % 16 * 4;
      for (int b = 0; b < 4; ++b) {
        at[b] = static_cast<std::byte>(x[b] | x[4 + b] << 2 | x[8 + b] << 4 | x[12 + b] << 6);
      }
    }
  }
}
inline void pack_v(const std::uint8_t* digits, int d, std::byte* codes) {
  for (int block = 0; block < 4; ++block, digits += static_cast<std::size_t>(16) * d) {
    for (int b = 0; b < 4; ++b) {
      const std::uint8_t* x = digits + static_cast<std::size_t>(b) * d;
      for (int i = 0; i < d; ++i) {
        codes[static_cast<std::size_t>(block * (d / 16) + i / 16) * 64 + i % 16 * 4 + b] =
            static_cast<std::byte>(x[i] | x[4 * d + i] << 2 | x[8 * d + i] << 4 |
                                   x[12 * d + i] << 6);
      }
    }
  }
}

inline void seal_page_impl(const std::byte* hot, const KvTransform& transform, int d,
                           std::byte* sealed) {
  if (d <= 0 || d > kMaxHeadDim) __builtin_unreachable();  // kv_cache.h checks it
  alignas(64) float x[kPageTokens * kMaxHeadDim];
  alignas(64) float y[kPageTokens * kMaxHeadDim];
  std::uint8_t digits[kPageTokens * kMaxHeadDim] = {};
  std::uint16_t scales[kPageTokens];
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
  pack_k(digits, d, sealed);

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
  pack_v(digits, d, sealed + sealed_v_codes(d));
}

}  // namespace
}  // namespace foretoken::kernels
