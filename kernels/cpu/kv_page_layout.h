// Byte layouts of hot and sealed KV pages, shared by the page and attention kernels of CPU and
// CUDA. Private to kernels/.
//
// hot     K: 4 blocks of 16 tokens; block: d/2 groups of 64 bytes; group g: 16 lanes (token) x 2
// bf16
//            (channels 2g, 2g+1). A vector of logits grows lane by lane, without horizontal sums.
//         V: [64, d] bf16, row-major.
// sealed  K codes, V codes: 4 blocks of 16 tokens; block: d/16 groups of 64 bytes; group: 16 lanes
// x 4 bytes
//            x 4 bit pairs. K: lane = token, byte b, pair j = digit 16 group + 4 j + b.
//                           V: lane = digit, byte b, pair j = token 16 block + 4 j + b.
//         then K scales fp16 [64], V scales fp16 [64], K mean bf16 [d].
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define FORETOKEN_HOST_DEVICE __host__ __device__
#else
#define FORETOKEN_HOST_DEVICE
#endif

namespace foretoken::kernels {
namespace {

constexpr int kBlockTokens = 16;

[[maybe_unused]] FORETOKEN_HOST_DEVICE inline std::size_t hot_k_offset(int d, int slot,
                                                                       int channel) {
  return static_cast<std::size_t>(slot / kBlockTokens) * (d * 2 * kBlockTokens) +
         static_cast<std::size_t>(channel / 2) * 64 + (slot % kBlockTokens) * 4 + (channel & 1) * 2;
}
[[maybe_unused]] FORETOKEN_HOST_DEVICE inline std::size_t hot_v_offset(int d, int slot) {
  return static_cast<std::size_t>(64) * d * 2 + static_cast<std::size_t>(slot) * d * 2;
}
[[maybe_unused]] FORETOKEN_HOST_DEVICE inline std::size_t sealed_v_codes(int d) {
  return static_cast<std::size_t>(16) * d;
}
[[maybe_unused]] FORETOKEN_HOST_DEVICE inline std::size_t sealed_k_scales(int d) {
  return static_cast<std::size_t>(32) * d;
}
[[maybe_unused]] FORETOKEN_HOST_DEVICE inline std::size_t sealed_v_scales(int d) {
  return sealed_k_scales(d) + 128;
}
[[maybe_unused]] FORETOKEN_HOST_DEVICE inline std::size_t sealed_k_mean(int d) {
  return sealed_k_scales(d) + 256;
}
// Byte of (lane, digit-or-token index i of 16) in a group; its bit pair is at shift 2 * (i / 4).
[[maybe_unused]] FORETOKEN_HOST_DEVICE inline int code_byte(int lane, int i) {
  return lane * 4 + (i & 3);
}
[[maybe_unused]] FORETOKEN_HOST_DEVICE inline int code_shift(int i) { return 2 * (i >> 2); }

[[maybe_unused]] FORETOKEN_HOST_DEVICE inline float float_of(std::uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
[[maybe_unused]] FORETOKEN_HOST_DEVICE inline std::uint32_t bits_of(float f) {
  std::uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return bits;
}
[[maybe_unused]] FORETOKEN_HOST_DEVICE inline float bf16_to_float(std::uint16_t h) {
  return float_of(static_cast<std::uint32_t>(h) << 16);
}
// Nearest, ties to even; NaN becomes 0, infinities and overflow the largest finite value.
[[maybe_unused]] FORETOKEN_HOST_DEVICE inline std::uint16_t float_to_bf16_finite(float f) {
  std::uint32_t bits = bits_of(f);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0;
  bits += 0x7fffu + ((bits >> 16) & 1u);
  if ((bits & 0x7f800000u) == 0x7f800000u)
    return static_cast<std::uint16_t>((bits >> 31) << 15 | 0x7f7fu);
  return static_cast<std::uint16_t>(bits >> 16);
}
// fp16 of a finite value >= 0, nearest, ties to even, saturating. Written out, so that scales are
// the same bits with and without F16C.
[[maybe_unused]] FORETOKEN_HOST_DEVICE inline std::uint16_t scale_to_half(float f) {
  if (!(f > 0)) return 0;
  if (f >= 65504.0f) return 0x7bff;
  if (f < 6.103515625e-05f) {  // subnormal half: a multiple of 2^-24
    const float steps = f * 16777216.0f;
    std::uint32_t n = static_cast<std::uint32_t>(steps);
    const float rest = steps - static_cast<float>(n);
    if (rest > 0.5f || (rest == 0.5f && (n & 1u))) ++n;
    return static_cast<std::uint16_t>(n);
  }
  std::uint32_t bits = bits_of(f);
  bits += 0xfffu + ((bits >> 13) & 1u);
  const std::uint32_t half = (bits >> 13) - ((127 - 15) << 10);
  return static_cast<std::uint16_t>(half > 0x7bffu ? 0x7bffu : half);
}
[[maybe_unused]] FORETOKEN_HOST_DEVICE inline float half_to_scale(
    std::uint16_t h) {  // of scale_to_half's values
  const std::uint32_t exponent = h >> 10, mantissa = h & 0x3ffu;
  if (exponent == 0) return static_cast<float>(mantissa) * 5.9604644775390625e-08f;
  return float_of((exponent + 112) << 23 | mantissa << 13);
}

}  // namespace

// One a translation unit and ISA; kv_page.cpp picks.
struct KvTransform;
void seal_page_scalar(const std::byte* hot, const KvTransform& transform, int d,
                      std::byte* sealed);
void seal_page_avx2(const std::byte* hot, const KvTransform& transform, int d, std::byte* sealed);
void seal_page_avx512(const std::byte* hot, const KvTransform& transform, int d,
                      std::byte* sealed);

}  // namespace foretoken::kernels
