// KV pages on raw pointers: 64 tokens of one layer and one KV head, K and V in one blob.
// Hot pages hold bf16 values in a layout private to the kernels; sealed pages hold what their
// mode's KvFormat says. Byte layouts: kernels/README.md. head_dim is a multiple of 16, at most
// kMaxHeadDim. Thread-safe on distinct pages; nothing allocates.
#pragma once

#include <cstddef>
#include <cstdint>

#include "foretoken/kernels/kv_format.h"

namespace foretoken::kernels {

inline constexpr int kPageTokens = 64;
inline constexpr int kMaxHeadDim = 256;

std::size_t hot_page_bytes(int head_dim);  // 64 * 2 * head_dim * 2
// Metadata included; 4608 for int2 at head_dim 128, 0 for bf16.
std::size_t sealed_page_bytes(KvMode mode, int head_dim);
// The one writer: stores the K and V row ([head_dim] each, float, rotary applied) of slot 0..63,
// rounded to bf16 (nearest, ties to even). What is not finite is made finite (NaN: 0, infinity: the
// largest bf16), so that a rejected row can never reach its neighbours through 0 * inf.
void store_kv(std::byte* hot, int head_dim, int slot, const float* k, const float* v);
// One slot's bits into another, of this page or the next.
void copy_kv(const std::byte* from, int from_slot, int head_dim, std::byte* to, int to_slot);
void load_k(const std::byte* hot, int head_dim, int slot, float* k);  // exact bf16 values back
void load_v(const std::byte* hot, int head_dim, int slot, float* v);

// The transform of one (layer, KV head); d = head_dim, D = k_digits or v_digits of the mode. See
// runtime/kv/calibration.h for its making. A null matrix is the identity.
// Symmetric modes: a row becomes d *channels* in units of their static steps; the first n4 have two
// digits, the last d + n4 - D none, the rest one. A channel of two is their sum with weights
// L = 2^bits and 1 (at two bits: centred code - 7.5 = 4 (hi - 1.5) + (lo - 1.5)), so every row has
// exactly D *digits*: 0..n4-1 the high ones, n4..2 n4-1 the low ones, then one each.
//   K: q . k ~ q . page_mean + s_row * (q k_query) . c        c = digits - (L - 1) / 2
//   V: v ~ v_mean + s_row * (c v_decode)
// Digit weights and steps are folded into k_query and v_decode. Affine modes have D = d, unless K
// is by channel, and no means:
//   K: q . k ~ (q k_query) . (s c + z)      V: v ~ (s c + z) v_decode
// All matrices [in, out], row-major: a vector is multiplied from the left.
struct KvTransform {
  // clang-format off
  const float* k_encode = nullptr;  // [d, d]: channels, in steps = (k - page_mean) k_encode
  const float* k_query = nullptr;   // [d, D]: by digit
  const float* k_weight = nullptr;  // [d]: of each channel in the row's least-squares scale
  const float* v_encode = nullptr;  // [d, d]: channels = (v - v_mean) v_encode
  const float* v_decode = nullptr;  // [D, d]: from digits
  const float* v_weight = nullptr;  // [d]
  const float* v_mean = nullptr;    // [d], or null: 0
  int k_n4 = 0, v_n4 = 0;           // max(0, D - d) <= n4 <= D/2
  // The published baselines that tests and measurements set it against:
  bool k_page_mean = true;          // false: the stored mean is 0
  bool max_scale = false;           // true: a row's largest channel gets the outermost code
  // clang-format on
};
// Quantises a full hot page. Codes and scales are bit-equal on every ISA: one summation order, no
// FMA.
void seal_page(const std::byte* hot, KvMode mode, const KvTransform& transform, int head_dim,
               std::byte* sealed);
// What the codes mean, for oracles: k, v [64, d].
void dequantize_sealed_page(const std::byte* sealed, KvMode mode, const KvTransform& transform,
                            int head_dim, float* k, float* v);

}  // namespace foretoken::kernels
