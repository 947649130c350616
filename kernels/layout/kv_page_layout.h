// Byte layouts of hot and sealed KV pages, shared by the page and attention kernels of CPU and
// CUDA. Private to kernels/.
//
// hot     K: 4 blocks of 16 tokens; block: d/2 groups of 64 bytes; group g: 16 lanes (token) x
//            2 bf16 (channels 2g, 2g+1). A vector of logits grows lane by lane, without horizontal
//            sums.
//         V: [64, d] bf16, row-major.
// sealed  K codes, V codes in groups of 64 bytes: 16 lanes x 4 bytes, `bits` bits a code, so 16, 8
//         or 4 codes a lane; code i of a lane is in byte i & 3 at bit `bits` * (i / 4).
//         K: 4 blocks of 16 tokens, each n_digits / (codes a lane) groups: lane = token,
//            code = digit.
//         V: blocks of (codes a lane) tokens, each n_digits / 16 groups: lane = digit,
//            code = token.
//         Then, as the format has them:
//         - K scales fp16: by row [64], by channel [64 / k_group, d]; K centres likewise (affine)
//         - V scales fp16 [channel groups, 64]; V centres likewise (affine)
//         - K mean bf16 [d] (symmetric)
//         - the channels of two digits, a byte each, ascending (by channel, boosted)
#pragma once

#include <cstddef>
#include <cstdint>

#include "foretoken/kernels/kv_format.h"
#include "foretoken/kernels/kv_page.h"
#include "kernels/layout/half.h"

namespace foretoken::kernels {
namespace {

constexpr int kBlockTokens = 16;
constexpr int kMaxDigits = 2 * kMaxHeadDim;  // of a row

FORETOKEN_PORTABLE std::size_t hot_k_offset(int d, int slot, int channel) {
  return static_cast<std::size_t>(slot / kBlockTokens) * (d * 2 * kBlockTokens) +
         static_cast<std::size_t>(channel / 2) * 64 + (slot % kBlockTokens) * 4 + (channel & 1) * 2;
}
FORETOKEN_PORTABLE std::size_t hot_v_offset(int d, int slot) {
  return static_cast<std::size_t>(64) * d * 2 + static_cast<std::size_t>(slot) * d * 2;
}
// Offsets in a sealed page of a format.
struct SealedLayout {
  int k_digits, v_digits;
  int k_groups;  // by channel: token groups of a page, else 0
  int v_groups;  // channel groups of a V row: the last may be shorter
  std::size_t v_codes, k_scales, k_centres, v_scales, v_centres, k_mean, boosted, bytes;

  constexpr SealedLayout(const KvFormat& f, int d)
      : k_digits(foretoken::kernels::k_digits(f, d)),
        v_digits(foretoken::kernels::v_digits(f, d)),
        k_groups(f.k_group > 0 ? 64 / f.k_group : 0),
        v_groups(f.v_group > 0 ? (d + f.v_group - 1) / f.v_group : 1),
        v_codes(static_cast<std::size_t>(8) * f.bits * k_digits),
        k_scales(v_codes + static_cast<std::size_t>(8) * f.bits * v_digits),
        k_centres(k_scales + 2 * static_cast<std::size_t>(k_groups > 0 ? k_groups * d : 64)),
        v_scales(k_centres + (f.affine ? k_centres - k_scales : 0)),
        v_centres(v_scales + static_cast<std::size_t>(128) * v_groups),
        k_mean(v_centres + (f.affine ? v_centres - v_scales : 0)),
        boosted(k_mean + (f.affine ? 0 : static_cast<std::size_t>(d) * 2)),
        bytes(boosted + (k_groups > 0 ? static_cast<std::size_t>(k_digits - d) : 0)) {}
};
// Codes a lane of a 64-byte group; of code i, its byte within the group and its shift.
constexpr int codes_per_lane(int bits) { return 32 / bits; }
FORETOKEN_PORTABLE int code_byte(int lane, int i) { return lane * 4 + (i & 3); }
FORETOKEN_PORTABLE int code_shift(int bits, int i) { return bits * (i >> 2); }
// Where a page of int2 has the mean of K.
FORETOKEN_PORTABLE std::size_t sealed_k_mean(int d) {
  return static_cast<std::size_t>(32) * d + 256;
}
static_assert(SealedLayout(kv_format(KvMode::kInt2), 128).k_mean == 32 * 128 + 256);

}  // namespace
}  // namespace foretoken::kernels
