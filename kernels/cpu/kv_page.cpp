#include "foretoken/kernels/kv_page.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/layout/kv_page_layout.h"

namespace foretoken::kernels {

std::size_t hot_page_bytes(int d) { return static_cast<std::size_t>(kPageTokens) * 2 * d * 2; }
std::size_t sealed_page_bytes(KvMode mode, int d) {
  const KvFormat& format = kv_format(mode);
  return format.bits > 0 ? SealedLayout(format, d).bytes : 0;
}

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

void copy_kv(const std::byte* from, int from_slot, int d, std::byte* to, int to_slot) {
  for (int c = 0; c < d; c += 2)
    std::memcpy(to + hot_k_offset(d, to_slot, c), from + hot_k_offset(d, from_slot, c), 4);
  std::memcpy(to + hot_v_offset(d, to_slot), from + hot_v_offset(d, from_slot),
              static_cast<std::size_t>(d) * 2);
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

void seal_page(const std::byte* hot, KvMode mode, const KvTransform& transform, int d,
               std::byte* sealed) {
  cpu_ops().seal_page(hot, kv_format(mode), transform, d, sealed);
}

void dequantize_sealed_page(const std::byte* sealed, KvMode mode, const KvTransform& transform,
                            int d, float* k, float* v) {
  const KvFormat& format = kv_format(mode);
  const SealedLayout at(format, d);
  const int bits = format.bits, codes = codes_per_lane(bits);
  const double centre = 0.5 * ((1 << bits) - 1);
  const auto half = [&](std::size_t offset) {
    std::uint16_t h;
    std::memcpy(&h, sealed + offset, 2);
    return h;
  };
  const auto code = [&](std::size_t base, std::size_t group, int lane, int i) {
    const auto byte = std::to_integer<int>(sealed[base + group * 64 + code_byte(lane, i)]);
    return ((byte >> code_shift(bits, i)) & ((1 << bits) - 1)) - centre;
  };
  // A row from its digits: through the matrix [d, n_digits] (K) or [n_digits, d] (V), or as they
  // are.
  std::vector<double> digits(std::max(at.k_digits, at.v_digits)), sum(d);
  for (int t = 0; t < kPageTokens; ++t) {
    for (int i = 0; i < at.k_digits; ++i) {
      digits[i] = code(0, static_cast<std::size_t>(t / 16) * (at.k_digits / codes) + i / codes,
                       t % 16, i % codes);
    }
    if (format.k_group > 0) {
      // Channels: the low digits, with the high ones where there are.
      for (int i = d; i < at.k_digits; ++i) {
        digits[std::to_integer<int>(sealed[at.boosted + i - d])] +=
            static_cast<double>(1 << bits) * digits[i];
      }
      const std::size_t group = static_cast<std::size_t>(t / format.k_group) * d;
      for (int c = 0; c < d; ++c) {
        digits[c] = digits[c] * half_to_float(half(at.k_scales + 2 * (group + c))) +
                    half_to_float(half(at.k_centres + 2 * (group + c)));
      }
    } else {
      const double s = half_to_float(half(at.k_scales + 2 * t));
      const double z = format.affine ? half_to_float(half(at.k_centres + 2 * t)) : 0;
      for (int i = 0; i < at.k_digits; ++i) digits[i] = s * digits[i] + z;
    }
    for (int j = 0; j < d; ++j) {
      double x = transform.k_query == nullptr ? digits[j] : 0;
      for (int i = 0; i < at.k_digits && transform.k_query != nullptr; ++i)
        x += digits[i] * transform.k_query[static_cast<std::size_t>(j) * at.k_digits + i];
      if (!format.affine) x += bf16_to_float(half(at.k_mean + 2 * j));
      k[t * d + j] = static_cast<float>(x);
    }

    for (int i = 0; i < at.v_digits; ++i) {
      const std::size_t scale =
          2 *
          (static_cast<std::size_t>(format.v_group > 0 ? i / format.v_group : 0) * kPageTokens + t);
      digits[i] =
          half_to_float(half(at.v_scales + scale)) *
              code(at.v_codes, static_cast<std::size_t>(t / codes) * (at.v_digits / 16) + i / 16,
                   i % 16, t % codes) +
          (format.affine ? half_to_float(half(at.v_centres + scale)) : 0);
    }
    for (int j = 0; j < d; ++j) {
      double x = transform.v_decode == nullptr ? digits[j] : 0;
      for (int i = 0; i < at.v_digits && transform.v_decode != nullptr; ++i)
        x += digits[i] * transform.v_decode[static_cast<std::size_t>(i) * d + j];
      if (transform.v_mean != nullptr) x += transform.v_mean[j];
      v[t * d + j] = static_cast<float>(x);
    }
  }
}

}  // namespace foretoken::kernels
