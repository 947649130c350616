#include "kernels/cpu/attention_impl.h"
#include "kernels/cpu/cpu_ops.h"

namespace foretoken::kernels {
namespace {

// How many sums registers hold.
struct Vector : Simd {
  static constexpr bool kTileSums = false;
#if defined(__AVX512F__)
  // Thirty-two registers: 5 rows x 4 vectors of sums, 4 to 8 of K or V, broadcasts from memory.
  // Four vectors are a page's 64 tokens, so that even one row has four independent chains.
  // Over codes six rows fit, the heads of a group in many models: 6 x 4 sums, 4 vectors of codes.
  static constexpr int kTile = 4, kRowTile = 5, kCodeRowTile = 6;
#elif defined(__AVX2__)
  // Sixteen registers: 3 rows x 2 vectors of sums, 4 of K or V, and room for broadcasts.
  static constexpr int kTile = 2, kRowTile = 4, kCodeRowTile = 4;
#else
  static constexpr int kTile = 1, kRowTile = 1, kCodeRowTile = 1;
#endif
};

}  // namespace
}  // namespace foretoken::kernels

#if defined(__AMX_INT8__)
#include "kernels/cpu/attention_amx.h"
#endif

namespace foretoken::kernels::FORETOKEN_ISA {

#if defined(__AMX_INT8__)
constinit const AttentionTable kAttention = attention_table<AmxVector>();
#else
constinit const AttentionTable kAttention = attention_table<Vector>();
#endif

}  // namespace foretoken::kernels::FORETOKEN_ISA
