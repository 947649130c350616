// Q2_K: 256 values (d * scale[i / 16]) * code - dmin * min[i / 16], of four bits each.
// File: scale and minimum nibbles 16, pairs 64, d, dmin.
#pragma once

#include "kernels/cpu/weight_blocks.h"

namespace foretoken::kernels {
namespace {

struct Q2_K : CodedBlocks<Q2_K> {
  static constexpr Packing kPacking{.values = 256, .pairs = 0, .scales = 16, .minimums = true};
  static constexpr int kOffset = 0;
  static void decode(const std::uint8_t* p, DecodedBlock& out) {
    for (int j = 0; j < 16; ++j) {
      out.scale[j] = static_cast<std::int8_t>(p[j] & 15);
      out.min[j] = p[j] >> 4;
    }
    pairs256(p + 16, out.code);
    out.d = load16(p + 80);
    out.m = load16(p + 82);
  }

  template <class V, int kShift>
  static FORETOKEN_INLINE typename V::I nibble(typename V::I x) {  // of each lane
    return V::bit_and(V::template shift_right<kShift>(x), V::set_int(15));
  }
  template <class V, int R>
  static void tile(const Tile& t) {
    using F = typename V::F;
    using I = typename V::I;
    const std::uint8_t* record = t.records;
    const auto* x = static_cast<const Record256*>(t.x);
    const std::size_t ahead = t.ahead;
    F sum[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sum[r] = V::set(0.0f);
    for (std::int64_t b = 0; b < t.n_blocks; ++b) {
      const std::uint8_t* nibbles = record + kPacking.scales_at() + 4 * t.lane;
      I block_sum[R];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) block_sum[r] = V::set_int(0);
#pragma GCC unroll 1
      for (int j = 0; j < 8; ++j) {
        prefetch<record_bytes() / 8>(record + record_bytes() / 8 * j + ahead);
        I w[8];
        unpack_codes<V, Q2_K>(record + 4 * t.lane, j, w);
        const I four = V::shift_right_by(V::load_int(nibbles + 64 * (j / 2)), 16 * (j & 1));
        add_scaled_products<V, 3, 4, false>(w, x, 32 * j, nibble<V, 0>(four), block_sum);
        add_scaled_products<V, 3, 4, false>(w + 4, x, 32 * j + 16, nibble<V, 8>(four), block_sum);
      }
      I min_sum[R];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) min_sum[r] = V::set_int(0);
#pragma GCC unroll 1
      for (int v = 0; v < 4; ++v) {
        const I four = V::load_int(nibbles + 64 * v);
        const I m[4] = {nibble<V, 4>(four), nibble<V, 12>(four), nibble<V, 20>(four),
                        nibble<V, 28>(four)};
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
          for (int k = 0; k < 4; ++k)
            min_sum[r] = V::add_int(min_sum[r],
                                    V::multiply_int(m[k], V::set_int(x[r].minus32_sum[4 * v + k])));
        }
      }
      const F d = V::load_half(record + kPacking.d_at() + 2 * t.lane);
      // Activations carry -32 times their sums.
      const F dmin = V::mul(V::load_half(record + kPacking.m_at() + 2 * t.lane), V::set(0.03125f));
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const F total = V::fma(V::to_float(block_sum[r]), d, V::mul(V::to_float(min_sum[r]), dmin));
        sum[r] = V::fma(total, V::set(x[r].scale), sum[r]);
      }
      record += record_bytes();
      x += t.x_stride;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) store_outputs<V>(sum[r], t.bias, t.y + r * t.y_stride, t.lanes);
  }
};

}  // namespace
}  // namespace foretoken::kernels
