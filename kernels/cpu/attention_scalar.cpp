// The reference: one lane.
#include <cmath>

#include "kernels/cpu/attention_impl.h"

namespace foretoken::kernels {
namespace {

struct Scalar {
  static constexpr int kLanes = 1, kTile = 1, kRowTile = 1, kCodeRowTile = kRowTile;
  static constexpr bool kTileSums = false;
  using F = float;
  using I = std::int32_t;
  static F set(float x) { return x; }
  static F load(const float* p) { return *p; }
  static void store(float* p, F x) { *p = x; }
  static F fma(F a, F b, F c) { return a * b + c; }
  static F mul(F a, F b) { return a * b; }
  static F add(F a, F b) { return a + b; }
  static F subtract(F a, F b) { return a - b; }
  static F max(F a, F b) { return a > b ? a : b; }
  static F abs(F a) { return a < 0 ? -a : a; }
  static F round(F a) { return std::nearbyint(a); }
  static F scale_by_power(F p, F n) {
    return p * float_of(static_cast<std::uint32_t>(static_cast<int>(n) + 127) << 23);
  }
  static F zero_below(F x, float limit, F y) { return x < limit ? 0.0f : y; }
  static float sum(F a) { return a; }
  static float largest(F a) { return a; }
  static I load_int(const std::byte* p) {
    I x;
    std::memcpy(&x, p, 4);
    return x;
  }
  static F bf16_low(I x) { return float_of(static_cast<std::uint32_t>(x) << 16); }
  static F bf16_high(I x) { return float_of(static_cast<std::uint32_t>(x) & 0xffff0000u); }
  static F load_bf16(const std::byte* p) {
    std::uint16_t h;
    std::memcpy(&h, p, 2);
    return bf16_to_float(h);
  }
  static F load_half(const std::byte* p) {
    std::uint16_t h;
    std::memcpy(&h, p, 2);
    return half_to_centre(h);
  }
  static I set_int(std::int32_t x) { return x; }
  static void store_int(std::int32_t* p, I x) { *p = x; }
  static I round_to_int(F x) { return static_cast<I>(std::nearbyint(x)); }
  static F to_float(I x) { return static_cast<float>(x); }
  static I sub(I a, I b) { return a - b; }
  static I add_int(I a, I b) { return a + b; }
  static I twice(I a) { return 2 * a; }
  static I shift_left8(I a) { return a * 256; }
  template <int kBits>
  static I low_bits(I x) {
    return static_cast<I>(static_cast<std::uint32_t>(x) & 0x01010101u * ((1 << kBits) - 1));
  }
  template <int kBits>
  static I shift_right(I x) {
    return static_cast<I>(static_cast<std::uint32_t>(x) >> kBits);
  }
  static I broadcast4(const std::int8_t* p) {
    return load_int(reinterpret_cast<const std::byte*>(p));
  }
  template <int kBits>
  static I dot(I sum, I codes, I x) {
    for (int b = 0; b < 4; ++b) {
      sum += static_cast<std::uint8_t>(static_cast<std::uint32_t>(codes) >> (8 * b)) *
             static_cast<std::int8_t>(static_cast<std::uint32_t>(x) >> (8 * b));
    }
    return sum;
  }
  static void store_bytes(std::int8_t* p, I x) { *p = static_cast<std::int8_t>(x); }
  static std::int32_t sum_int(I x) { return x; }
  // w [n] times `inverse`, rounded, as 256 high + low; their sum.
  static std::int32_t split(const float* w, int n, float inverse, int most, std::int8_t* high,
                            std::int8_t* low) {
    std::int32_t sum = 0;
    for (int t = 0; t < n; ++t) {
      int x = round_to_int(w[t] * inverse);
      x = x > most ? most : x;
      const int h = (x + 128) >> 8;
      high[t] = static_cast<std::int8_t>(h);
      low[t] = static_cast<std::int8_t>(x - h * 256);
      sum += x;
    }
    return sum;
  }
};

}  // namespace

const AttentionTable kAttentionScalar = attention_table<Scalar>();

}  // namespace foretoken::kernels
