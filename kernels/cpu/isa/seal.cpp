// Sealing a page: plain IEEE operations (no FMA, contraction off) in orders written out, so that
// every instruction set computes the same bits, which is how codes and scales stay equal.
#include "foretoken/kernels/uniform_quantiser.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/simd.h"
#include "kernels/layout/kv_page_layout.h"

namespace foretoken::kernels::FORETOKEN_ISA {
namespace {

// Plain sums as wide as registers are: the width changes no bits, for a lane is one output.
#if defined(__AVX2__)
typedef Simd::F Lanes;
#else
typedef float Lanes __attribute__((vector_size(16)));
#endif
constexpr int kLanes = sizeof(Lanes) / sizeof(float);

// Most scales of a page, in 64s: K by channel in groups of 16 tokens.
constexpr int kMaxGroups = 4 * kMaxHeadDim / kPageTokens;
// Rounds of (codes for the scale, least-squares scale for the codes). On Gaussian rows of 64 to 128
// channels the third round changes fewer than one code in a thousand.
constexpr int kScaleRounds = 3;

// y [64, d] = x [64, d] times m [d, d]; products added in ascending order of the inner index.
void encode(const float* x, const float* m, int d, float* y) {
  constexpr int kRows = 8;  // independent chains of adds
  for (int t = 0; t < kPageTokens; t += kRows) {
    for (int i = 0; i < d; i += kLanes) {
      Lanes sum[kRows] = {};
      const float* rows = x + static_cast<std::size_t>(t) * d;
      for (int j = 0; j < d; ++j) {
        const auto w = load_lanes<Lanes>(m + static_cast<std::size_t>(j) * d + i);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) sum[r] += w * rows[r * d + j];
      }
      float* out = y + static_cast<std::size_t>(t) * d + i;
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) store_lanes(out + r * d, sum[r]);
    }
  }
}

// Codes of one row of channels: floor(x / s) + half the levels, clamped to the channel's levels.
// `low` is -levels/2 by channel, `high` levels/2 - 1 (0 and 0 for a channel without bits).
// centred = floor(...) + 0.5.
void centred_codes(const float* x, const float* low, const float* high, float inverse_scale, int d,
                   float* centred) {
  for (int i = 0; i < d; ++i) {
    float f = __builtin_floorf(x[i] * inverse_scale);
    f = f > low[i] ? f : low[i];  // a NaN becomes the lowest code
    f = f < high[i] ? f : high[i];
    centred[i] = f + 0.5f;
  }
}

// How the channels of a symmetric row are coded: n4 of two digits, then those of one, then none.
struct RowShape {
  int bits, d, n4, n_coded;
  bool max_scale;
  float expected;  // of the weighted energy, in units of steps
  float low[kMaxHeadDim], high[kMaxHeadDim], weight[kMaxHeadDim];
};

// One row: the scale (fp16) and the digits. `weight` is 0 for channels without bits.
std::uint16_t quantise_row(const float* x, const RowShape& shape, std::uint8_t* digits) {
  float centred[kMaxHeadDim];
  const int d = shape.d, n4 = shape.n4;
  const float* weight = shape.weight;
  float scale = 0;
  if (shape.max_scale) {
    for (int i = 0; i < shape.n_coded; ++i) {
      const float reach = __builtin_fabsf(x[i]) / (shape.high[i] + 0.5f);
      scale = reach > scale ? reach : scale;
    }
  } else {
    F32x16 part{};
    for (int i = 0; i < d; i += 16) {
      const auto channels = load_lanes<F32x16>(x + i);
      part += load_lanes<F32x16>(weight + i) * (channels * channels);
    }
    scale = __builtin_sqrtf(sum_lanes(part) / shape.expected);
    for (int round = 0; round < kScaleRounds && scale > 0; ++round) {
      centred_codes(x, shape.low, shape.high, 1.0f / scale, d, centred);
      F32x16 with_x{}, with_code{};
      for (int i = 0; i < d; i += 16) {
        const auto code = load_lanes<F32x16>(centred + i);
        const F32x16 wc = load_lanes<F32x16>(weight + i) * code;
        with_x += wc * load_lanes<F32x16>(x + i);
        with_code += wc * code;
      }
      scale = sum_lanes(with_x) / sum_lanes(with_code);
    }
  }
  const std::uint16_t half = scale_to_half(scale);
  const float stored = half_to_float(half);
  centred_codes(x, shape.low, shape.high, stored > 0 ? 1.0f / stored : 0.0f, d, centred);
  const int levels = 1 << shape.bits;
  const float to_low = 0.5f * static_cast<float>(levels * levels - 1),
              to_digit = 0.5f * static_cast<float>(levels - 1);
  for (int i = 0; i < n4; ++i) {
    const int code = static_cast<int>(centred[i] + to_low);
    digits[i] = static_cast<std::uint8_t>(code >> shape.bits);
    digits[n4 + i] = static_cast<std::uint8_t>(code & (levels - 1));
  }
  for (int i = n4; i < shape.n_coded; ++i)
    digits[n4 + i] = static_cast<std::uint8_t>(static_cast<int>(centred[i] + to_digit));
  return half;
}

// x [64, d] into digits [64, n_digits].
void quantise_rows(const float* x, const float* channel_weight, int bits, int n4, int n_digits,
                   int d, bool max_scale, std::uint16_t* scales, std::uint8_t* digits) {
  RowShape shape;
  shape.bits = bits, shape.d = d, shape.n4 = n4, shape.n_coded = n_digits - n4;
  shape.max_scale = max_scale;
  shape.expected = 0;
  const auto half_levels = static_cast<float>(1 << (bits - 1)),
             half_doubled = static_cast<float>(1 << (2 * bits - 1));
  for (int i = 0; i < d; ++i) {
    const bool coded = i < shape.n_coded;
    shape.low[i] = i < n4 ? -half_doubled : coded ? -half_levels : 0.0f;
    shape.high[i] = i < n4 ? half_doubled - 1 : coded ? half_levels - 1 : 0.0f;
    shape.weight[i] = coded ? channel_weight[i] : 0.0f;
    // A channel's static step is this times its deviation: in units of it, it has deviation 1/this.
    const auto step = static_cast<float>(kUniformQuantiser[i < n4 ? 2 * bits : bits].step);
    shape.expected += shape.weight[i] / (step * step);
  }
  for (int t = 0; t < kPageTokens; ++t) {
    scales[t] = shape.expected > 0 ? quantise_row(x + static_cast<std::size_t>(t) * d, shape,
                                                  digits + static_cast<std::size_t>(t) * n_digits)
                                   : 0;
  }
}

// The magnitude at `index` in ascending order, by bisection on the bits (non-negative floats sort
// as integers; a NaN comes last).
float magnitude_at(const float* x, int n, int index) {
  std::uint32_t found = 0;
  for (int bit = 30; bit >= 0; --bit) {
    const std::uint32_t tried = found | 1u << bit;
    int below = 0;
    for (int i = 0; i < n; ++i) below += (bits_of(x[i]) & 0x7fffffffu) < tried ? 1 : 0;
    if (below <= index) found = tried;
  }
  return float_of(found);
}

struct AffineRow {
  std::uint16_t scale, centre;  // fp16
};
// From the smallest and the largest value.
AffineRow affine_of(float least, float most, int levels) {
  const std::uint16_t centre = finite_to_half(0.5f * least + 0.5f * most);
  return {scale_to_half((most - least) / static_cast<float>(levels - 1)), centre};
}
int affine_code(float x, float centre, float inverse_scale, int levels) {
  const float half = static_cast<float>(levels / 2);
  float f = __builtin_floorf((x - centre) * inverse_scale);
  f = f > -half ? f : -half;
  f = f < half - 1 ? f : half - 1;
  return static_cast<int>(f + half);
}

// Channels of one row (or group of it): codes from the smallest to the largest value, after
// clipping magnitudes at the quantile `keep`.
AffineRow quantise_affine(const float* x, int n, int levels, float keep, std::uint8_t* digits) {
  float clipped[kMaxHeadDim];
  const auto index = static_cast<int>(keep * static_cast<float>(n));
  const float limit = index < n ? magnitude_at(x, n, index) : __builtin_inff();
  float least = __builtin_inff(), most = -__builtin_inff();
  for (int i = 0; i < n; ++i) {
    float f = x[i] > -limit ? x[i] : -limit;
    f = f < limit ? f : limit;
    clipped[i] = f;
    least = f < least ? f : least;
    most = f > most ? f : most;
  }
  const AffineRow row = affine_of(least, most, levels);
  const float scale = half_to_float(row.scale), centre = half_to_float(row.centre);
  const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
  for (int i = 0; i < n; ++i)
    digits[i] = static_cast<std::uint8_t>(affine_code(clipped[i], centre, inverse, levels));
  return row;
}

// K by channel: scale and centre a channel and group of tokens. The n_boosted channels of the
// largest mean magnitude (ties to the lower index) have a high digit too, after all the low ones
// (Kitty). x [64, d], digits [64, d + n_boosted].
void quantise_channels(const float* x, const KvFormat& format, int d, int n_boosted,
                       std::uint16_t* scales, std::uint16_t* centres, std::byte* boosted,
                       std::uint8_t* digits) {
  float magnitude[kMaxHeadDim] = {};
  for (int t = 0; t < kPageTokens; ++t) {
    for (int c = 0; c < d; ++c) magnitude[c] += __builtin_fabsf(x[t * d + c]);
  }
  int high_digit[kMaxHeadDim];  // of a channel, or -1
  int n_found = 0;
  for (int c = 0; c < d; ++c) {
    int larger = 0;
    for (int i = 0; i < d; ++i) {
      larger += magnitude[i] > magnitude[c] || (magnitude[i] == magnitude[c] && i < c) ? 1 : 0;
    }
    high_digit[c] = larger < n_boosted ? d + n_found : -1;
    if (larger < n_boosted) boosted[n_found++] = static_cast<std::byte>(c);
  }
  const int n_digits = d + n_boosted, levels = 1 << format.bits;
  for (int first = 0; first < kPageTokens; first += format.k_group, scales += d, centres += d) {
    float least[kMaxHeadDim], most[kMaxHeadDim];
    for (int c = 0; c < d; ++c) least[c] = most[c] = x[first * d + c];
    for (int t = first; t < first + format.k_group; ++t) {
      for (int c = 0; c < d; ++c) {
        const float f = x[t * d + c];
        least[c] = f < least[c] ? f : least[c];
        most[c] = f > most[c] ? f : most[c];
      }
    }
    for (int c = 0; c < d; ++c) {
      const int channel_levels = high_digit[c] < 0 ? levels : levels * levels;
      const AffineRow channel = affine_of(least[c], most[c], channel_levels);
      scales[c] = channel.scale, centres[c] = channel.centre;
      const float scale = half_to_float(channel.scale), centre = half_to_float(channel.centre);
      const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
      for (int t = first; t < first + format.k_group; ++t) {
        const int code = affine_code(x[t * d + c], centre, inverse, channel_levels);
        digits[t * n_digits + c] = static_cast<std::uint8_t>(code & (levels - 1));
        if (high_digit[c] >= 0)
          digits[t * n_digits + high_digit[c]] = static_cast<std::uint8_t>(code >> format.bits);
      }
    }
  }
}

// digits [64, n_digits] into groups of 64 bytes, each byte 8 / kBits digits of one lane
// (kv_page_layout.h).
template <int kBits>
void pack_k(const std::uint8_t* digits, int n_digits, std::byte* codes) {
  constexpr int kCodes = codes_per_lane(kBits);
  for (int t = 0; t < kPageTokens; ++t, digits += n_digits) {
    for (int g = 0; g < n_digits / kCodes; ++g) {
      const std::uint8_t* x = digits + g * kCodes;
      std::byte* at =
          codes + static_cast<std::size_t>(t / 16 * (n_digits / kCodes) + g) * 64 + t % 16 * 4;
      for (int b = 0; b < 4; ++b) {
        int byte = 0;
        for (int j = 0; j < kCodes / 4; ++j) byte |= x[4 * j + b] << kBits * j;
        at[b] = static_cast<std::byte>(byte);
      }
    }
  }
}
template <int kBits>
void pack_v(const std::uint8_t* digits, int n_digits, std::byte* codes) {
  constexpr int kCodes = codes_per_lane(kBits);
  for (int block = 0; block < kPageTokens / kCodes; ++block) {
    for (int b = 0; b < 4; ++b) {
      const std::uint8_t* x = digits + static_cast<std::size_t>(b) * n_digits;
      for (int i = 0; i < n_digits; ++i) {
        int byte = 0;
        for (int j = 0; j < kCodes / 4; ++j) byte |= x[4 * j * n_digits + i] << kBits * j;
        codes[static_cast<std::size_t>(block * (n_digits / 16) + i / 16) * 64 + i % 16 * 4 + b] =
            static_cast<std::byte>(byte);
      }
    }
    digits += static_cast<std::size_t>(kCodes) * n_digits;
  }
}
void pack(const std::uint8_t* digits, int bits, int k_digits, int v_digits, std::byte* k,
          std::byte* v) {
  const auto with = [&]<int kBits>() {
    if (k != nullptr) pack_k<kBits>(digits, k_digits, k);
    if (v != nullptr) pack_v<kBits>(digits, v_digits, v);
  };
  if (bits == 2) return with.template operator()<2>();
  if (bits == 4) return with.template operator()<4>();
  with.template operator()<8>();
}

}  // namespace

void seal_page(const std::byte* hot, const KvFormat& format, const KvTransform& transform, int d,
               std::byte* sealed) {
  if (d <= 0 || d > kMaxHeadDim) __builtin_unreachable();  // kv_cache.h checks it
  const SealedLayout at(format, d);
  alignas(64) float x[kPageTokens * kMaxHeadDim];
  alignas(64) float y[kPageTokens * kMaxHeadDim];
  std::uint8_t digits[kPageTokens * kMaxDigits] = {};
  std::uint16_t scales[kPageTokens * kMaxGroups], centres[kPageTokens * kMaxGroups];
  const float* channels = x;
  const auto transformed = [&](const float* matrix) {
    if (matrix != nullptr) encode(x, matrix, d, y);
    channels = matrix != nullptr ? y : x;
  };
  const int levels = 1 << format.bits;

  for (int t = 0; t < kPageTokens; ++t) {
    for (int c = 0; c < d; ++c) {
      std::uint16_t h;
      std::memcpy(&h, hot + hot_k_offset(d, t, c), 2);
      x[t * d + c] = bf16_to_float(h);
    }
  }
  if (!format.affine) {  // K less the page's mean, as stored
    float mean[kMaxHeadDim] = {};
    for (int t = 0; t < kPageTokens; ++t) {
      for (int c = 0; c < d; ++c) mean[c] += x[t * d + c];
    }
    for (int c = 0; c < d; ++c) {
      const std::uint16_t h = transform.k_page_mean
                                  ? float_to_bf16_finite(mean[c] * (1.0f / kPageTokens))
                                  : std::uint16_t{0};
      std::memcpy(sealed + at.k_mean + 2 * c, &h, 2);
      mean[c] = bf16_to_float(h);
    }
    for (int t = 0; t < kPageTokens; ++t) {
      for (int c = 0; c < d; ++c) x[t * d + c] -= mean[c];
    }
  }
  transformed(transform.k_encode);
  int n_scales = kPageTokens;
  if (format.k_group > 0) {
    n_scales = at.k_groups * d;
    quantise_channels(channels, format, d, at.k_digits - d, scales, centres, sealed + at.boosted,
                      digits);
  } else if (format.affine) {
    for (int t = 0; t < kPageTokens; ++t) {
      const AffineRow row =
          quantise_affine(channels + static_cast<std::size_t>(t) * d, d, levels, format.k_keep,
                          digits + static_cast<std::size_t>(t) * d);
      scales[t] = row.scale, centres[t] = row.centre;
    }
  } else {
    quantise_rows(channels, transform.k_weight, format.bits, transform.k_n4, at.k_digits, d,
                  format.max_scale || transform.max_scale, scales, digits);
  }
  std::memcpy(sealed + at.k_scales, scales, static_cast<std::size_t>(n_scales) * 2);
  if (format.affine)
    std::memcpy(sealed + at.k_centres, centres, static_cast<std::size_t>(n_scales) * 2);
  pack(digits, format.bits, at.k_digits, at.v_digits, sealed, nullptr);

  for (int t = 0; t < kPageTokens; ++t) {
    for (int c = 0; c < d; ++c) {
      std::uint16_t h;
      std::memcpy(&h, hot + hot_v_offset(d, t) + 2 * c, 2);
      x[t * d + c] = bf16_to_float(h);
    }
  }
  if (transform.v_mean != nullptr) {
    for (int t = 0; t < kPageTokens; ++t) {
      for (int c = 0; c < d; ++c) x[t * d + c] -= transform.v_mean[c];
    }
  }
  transformed(transform.v_encode);
  if (format.affine) {
    const int group = format.v_group > 0 ? format.v_group : d;
    for (int t = 0; t < kPageTokens; ++t) {
      for (int g = 0; g < at.v_groups; ++g) {
        const std::size_t first = static_cast<std::size_t>(t) * d + g * group;
        const AffineRow row =
            quantise_affine(channels + first, d - g * group < group ? d - g * group : group, levels,
                            format.v_keep, digits + first);
        scales[g * kPageTokens + t] = row.scale, centres[g * kPageTokens + t] = row.centre;
      }
    }
  } else {
    quantise_rows(channels, transform.v_weight, format.bits, transform.v_n4, at.v_digits, d,
                  format.max_scale || transform.max_scale, scales, digits);
  }
  const auto n = static_cast<std::size_t>(at.v_groups) * kPageTokens * 2;
  std::memcpy(sealed + at.v_scales, scales, n);
  if (format.affine) std::memcpy(sealed + at.v_centres, centres, n);
  pack(digits, format.bits, at.k_digits, at.v_digits, nullptr, sealed + at.v_codes);
}

}  // namespace foretoken::kernels::FORETOKEN_ISA
