#include "foretoken/kernels/kv_page.h"

#include <algorithm>
#include <vector>

#include "foretoken/kernels/isa.h"
#include "kernels/cpu/kv_page_layout.h"

namespace foretoken::kernels {

std::size_t hot_page_bytes(int d) { return static_cast<std::size_t>(kPageTokens) * 2 * d * 2; }
std::size_t sealed_page_bytes(int d) { return sealed_k_mean(d) + static_cast<std::size_t>(d) * 2; }

void store_kv(std::byte* hot, int d, int slot, const float* k, const float* v) {
  std::byte* k_at = hot + hot_k_offset(d, slot, 0);
  for (int c = 0; c < d; c += 2, k_at += 64) {
    const std::uint32_t pair = float_to_bf16_finite(k[c]) |
                               static_cast<std::uint32_t>(float_to_bf16_finite(k[c + 1])) << 16;
    std::memcpy(k_at, &pair, 4);
  }
  std::byte* v_at = hot + hot_v_offset(d, slot);
  for (int c = 0; c < d; ++c) {
    const std::uint16_t h = float_to_bf16_finite(v[c]);
    std::memcpy(v_at + 2 * c, &h, 2);
  }
}

void load_k(const std::byte* hot, int d, int slot, float* k) {
  for (int c = 0; c < d; ++c) {
    std::uint16_t h;
    std::memcpy(&h, hot + hot_k_offset(d, slot, c), 2);
    k[c] = bf16_to_float(h);
  }
}

void load_v(const std::byte* hot, int d, int slot, float* v) {
  for (int c = 0; c < d; ++c) {
    std::uint16_t h;
    std::memcpy(&h, hot + hot_v_offset(d, slot) + 2 * c, 2);
    v[c] = bf16_to_float(h);
  }
}

void seal_page(const std::byte* hot, const KvTransform& transform, int d, std::byte* sealed) {
  switch (active_isa()) {
    case Isa::kScalar:
      return seal_page_scalar(hot, transform, d, sealed);
    case Isa::kAvx2:
      return seal_page_avx2(hot, transform, d, sealed);
    default:
      return seal_page_avx512(hot, transform, d, sealed);
  }
}

void dequantize_sealed_page(const std::byte* sealed, const KvTransform& transform, int d,
                            float* k, float* v) {
  const auto half = [&](std::size_t at) {
    std::uint16_t h;
    std::memcpy(&h, sealed + at, 2);
    return h;
  };
  const auto code = [&](std::size_t base, int block, int lane, int group, int i) {
    const auto byte =
        std::to_integer<int>(sealed[base + (block * (d / 16) + group) * 64 + code_byte(lane, i)]);
    return ((byte >> code_shift(i)) & 3) - 1.5;
  };
  std::vector<double> sum(d);
  for (int t = 0; t < kPageTokens; ++t) {
    std::fill(sum.begin(), sum.end(), 0.0);
    for (int digit = 0; digit < d; ++digit) {
      const double c = code(0, t / 16, t % 16, digit / 16, digit % 16);
      for (int j = 0; j < d; ++j)
        sum[j] += c * transform.k_query[static_cast<std::size_t>(j) * d + digit];
    }
    for (int j = 0; j < d; ++j) {
      k[t * d + j] = static_cast<float>(bf16_to_float(half(sealed_k_mean(d) + 2 * j)) +
                                        half_to_scale(half(sealed_k_scales(d) + 2 * t)) * sum[j]);
    }
    std::fill(sum.begin(), sum.end(), 0.0);
    for (int digit = 0; digit < d; ++digit) {
      const double c = code(sealed_v_codes(d), t / 16, digit % 16, digit / 16, t % 16);
      for (int j = 0; j < d; ++j)
        sum[j] += c * transform.v_decode[static_cast<std::size_t>(digit) * d + j];
    }
    for (int j = 0; j < d; ++j) {
      v[t * d + j] = static_cast<float>(transform.v_mean[j] +
                                        half_to_scale(half(sealed_v_scales(d) + 2 * t)) * sum[j]);
    }
  }
}

}  // namespace foretoken::kernels
