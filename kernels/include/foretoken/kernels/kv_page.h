// KV pages on raw pointers: 64 tokens of one layer and one KV head, K and V in one blob.
// Hot pages hold 16-bit (bf16) values, in a layout private to the kernels; sealed pages hold packed INT2
// codes with one scale a row and one K mean a page. See kernels/README.md for the byte layouts.
#pragma once

#include <cstddef>
#include <cstdint>

namespace foretoken::kernels {

inline constexpr int kPageTokens = 64;

std::size_t hot_page_bytes(int head_dim);                 // 64 * 2 * head_dim * 2
std::size_t sealed_page_bytes(int head_dim);              // INT2: 4608 at head_dim 128
// The one writer: stores the K and V row ([head_dim] each, float, rotary applied) of slot 0..63.
void store_kv(std::byte* hot, int head_dim, int slot, const float* k, const float* v);
void load_k(const std::byte* hot, int head_dim, int slot, float* k);   // exact bf16 values back
void load_v(const std::byte* hot, int head_dim, int slot, float* v);

// The paired transform of one (layer, KV head); d = head_dim. See runtime/kv/calibration.h for its making.
//   K: digits of k are quantised R_k (k - page_mean); q . k = q . mean + s_row * (D_k q) . c
//   V: v ~ v_mean + s_row * E_v c
// where c in {-1.5, -.5, .5, 1.5}^d are the centred codes of the row's d two-bit digits.
struct Int2Transform {
  const float* k_encode;   // [d, d]: channels = k_encode (k - mean)
  const float* k_query;    // [d, d]: D_k, query transform (digit weights and steps folded in)
  const float* v_encode;   // [d, d]
  const float* v_decode;   // [d, d]: E_v
  const float* v_mean;     // [d]
  const float* k_step;     // [d] static step of each encoded channel, and likewise for V
  const float* v_step;     // [d]
  int k_n4, v_n4;          // channels 0..n4-1 carry 4 bits (two digits, weights 4 and 1), the last n4 none
};
// Quantises a full hot page. Codes and scales are bit-equal on every ISA.
void seal_page(const std::byte* hot, const Int2Transform& transform, int head_dim, std::byte* sealed);
// What the codes mean, for oracles: k, v [64, d].
void dequantize_sealed_page(const std::byte* sealed, const Int2Transform& transform, int head_dim, float* k, float* v);

}  // namespace foretoken::kernels
