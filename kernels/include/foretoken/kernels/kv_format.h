// The modes of the KV cache: what a sealed page of each holds. A mode is one row of kKvFormats;
// pages, attention, calibration, pool and flags follow from it. Read-only, any thread.
//
// A row (K or V of one token and KV head) becomes d channels by a transform (runtime/kv/
// calibration.h makes it; identity for some modes) and each channel a code of `bits` bits. With
// L = 2^bits levels and the centred code c = code - (L - 1) / 2:
//   symmetric  channel = s_t * c: a scale a row; K less its page's mean, V less a constant mean
//   affine     channel = s_t * c + z_t: scale and centre a row, or a group of v_group channels
//   by channel (K only) channel = s * c + z: scale and centre a channel and k_group tokens
// A channel of 2 * bits bits is two digits of weights L and 1 (centred: c = L c_high + c_low), so
// that kernels only ever see digits of `bits` bits.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>

namespace foretoken::kernels {

enum class KvMode : std::uint8_t {
  kBf16,      // no sealed pages
  kInt8,      // ours: paired transform at 8 bits
  kInt4,      // ours: paired transform with 4 bits a channel on average, allocated between channels
  kInt2,      // ours: the same with 2
  kInt2Kivi,  // KIVI (arXiv 2402.02750): K by channel, V by token, groups of 32
  kInt2Kitty,  // Kitty (arXiv 2511.18643): K by channel, a quarter of its channels at 4 bits
  kInt2Oscar,  // OSCAR (arXiv 2605.17757): calibrated rotations, clipped rows
  kInt4Saw,    // SAW-INT4 (arXiv 2604.19157): block-diagonal Hadamard of K
};

// What is multiplied onto rows before they are coded, and where it comes from.
enum class KvTransformKind : std::uint8_t {
  kIdentity,        // nothing
  kHadamard,        // no data: block-diagonal Hadamard on K
  kRotation,        // calibrated orthogonal rotations of K and V
  kPaired,          // calibrated paired transform, every channel alike
  kPairedClasses2,  // the same with channels of 4, 2 and no bits
  kPairedClasses4,  // with channels of 8, 4 and no bits
};

struct KvFormat {
  KvMode mode;
  const char* name;
  int bits = 0;  // of a code
  KvTransformKind transform = KvTransformKind::kIdentity;
  bool affine = false;
  bool max_scale =
      false;        // symmetric: the largest channel on the outermost code, else least squares
  int k_group = 0;  // tokens that share a K channel's scale and centre; 0: K by row
  int v_group = 0;  // channels that share a V row's scale and centre; 0: all
  int boosted_quarters = 0;    // by channel: so many quarters of the channels have two digits
  int k_extra_sixteenths = 0;  // of head_dim: digits that a row of K has more, and one of V less
  // The query against these codes is rounded to 15 bits, at twice the products, or else to 7: an
  // error of .4 % of its largest channel, far below that of 2-bit keys whose spectrum the paired
  // transform has levelled, but not below that of more bits or of what a bias dominates.
  bool wide_query = true;
  float k_keep = 1, v_keep = 1;  // affine rows are clipped to this quantile of their magnitudes
};

inline constexpr KvFormat kKvFormats[] = {
    {.mode = KvMode::kBf16, .name = "bf16"},
    {.mode = KvMode::kInt8,
     .name = "int8",
     .bits = 8,
     .transform = KvTransformKind::kPaired,
     // 256 levels reach further than any row of 256 channels does: nothing is gained by clipping.
     .max_scale = true},
    {.mode = KvMode::kInt4,
     .name = "int4",
     .bits = 4,
     .transform = KvTransformKind::kPairedClasses4},
    {.mode = KvMode::kInt2,
     .name = "int2",
     .bits = 2,
     .transform = KvTransformKind::kPairedClasses2,
     .wide_query = false},
    // As published: groups of 32 tokens of a K channel and 32 channels of a V row, min to max.
    {.mode = KvMode::kInt2Kivi,
     .name = "int2-kivi",
     .bits = 2,
     .affine = true,
     .k_group = 32,
     .v_group = 32},
    // Kitty-Pro: a quarter of the channels, those of the largest mean magnitude in the page. A page
    // is 64 tokens here, 128 there.
    {.mode = KvMode::kInt2Kitty,
     .name = "int2-kitty",
     .bits = 2,
     .affine = true,
     .k_group = 64,
     .boosted_quarters = 1},
    // Per layer and KV head (its format v2), scales and centres of two bytes.
    {.mode = KvMode::kInt2Oscar,
     .name = "int2-oscar",
     .bits = 2,
     .transform = KvTransformKind::kRotation,
     .affine = true,
     .k_keep = 0.96f,
     .v_keep = 0.92f},
    // Hadamard on K only, as is its default.
    {.mode = KvMode::kInt4Saw,
     .name = "int4-saw",
     .bits = 4,
     .transform = KvTransformKind::kHadamard,
     .affine = true},
};

// Digits of a row, each `bits` bits: a multiple of 16, as head_dim is.
constexpr int digits_rounded(int n) { return (n + 15) / 16 * 16; }
constexpr int k_digits(const KvFormat& f, int d) {
  return d + digits_rounded(f.k_extra_sixteenths * d / 16) +
         digits_rounded(f.boosted_quarters * d / 4);
}
constexpr int v_digits(const KvFormat& f, int d) {
  return d - digits_rounded(f.k_extra_sixteenths * d / 16);
}

// Whether a mode's channels differ in bits: 2 * bits, bits or none.
constexpr bool has_classes(KvTransformKind kind) {
  return kind == KvTransformKind::kPairedClasses2 || kind == KvTransformKind::kPairedClasses4;
}

// kBf16's for a mode without a row.
constexpr const KvFormat& kv_format(KvMode mode) {
  for (const KvFormat& format : kKvFormats) {
    if (format.mode == mode) return format;
  }
  return kKvFormats[0];
}

}  // namespace foretoken::kernels
