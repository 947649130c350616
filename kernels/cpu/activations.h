// Quantised activations as the linear kernels read them.
//
// Rows are cut into tiles of kActivationTile (the last one may be smaller, W rows). Inside a tile
// the records of all its rows lie together block by block, [n_blocks][W][record], so that a kernel
// walks one pointer and every row is at a constant offset. A row's record is a function of that row
// alone.
#pragma once

#include <cstddef>
#include <cstdint>

#include "foretoken/kernels/linear.h"

namespace foretoken::kernels {

inline constexpr int kActivationTile = 16;  // AMX takes 16 rows at once

// x ~ scale * q, q = round-half-even(x * (127 / absmax)), |q| <= 127.
struct Record32 {
  std::int8_t q[32];
  float scale;              // absmax / 127; 0 where the block is all zero
  float scaled_sum;         // scale * sum(q): meets Q4_1's minimum
  std::int32_t minus8_sum;  // -8 * sum(q): takes Q4_0's offset back out (twice it: Q5_0's)
  std::int32_t minus128_sum;
};
static_assert(sizeof(Record32) == 48);

struct Record256 {
  std::int8_t q[256];
  std::int32_t minus32_sum[16];  // -32 * sum of each 16 values: Q6_K's offset
  // Sums of each 32 values, |sum| <= 32 * 127 < 2^15, in the pairing of Q4_K's minimums:
  // (0, 2) (1, 3) (4, 6) (5, 7)
  std::int16_t pair_sum[8];
  float scale;
  std::int32_t unused[11];  // q begins a cache line: a tile's load reads one line a row
};
static_assert(sizeof(Record256) == 384);

struct Activations::Impl {
  std::int64_t max_rows = 0, max_in = 0;
  const float* x = nullptr;
  std::int64_t n_rows = 0, n_in = 0, stride = 0;
  bool has32 = false, has256 = false;
  std::byte* data32 = nullptr;
  std::byte* data256 = nullptr;

  // First record of the tile that begins at row (a multiple of kActivationTile).
  const Record32* tile32(std::int64_t row) const {
    return reinterpret_cast<const Record32*>(data32) + row * (n_in / 32);
  }
  const Record256* tile256(std::int64_t row) const {
    return reinterpret_cast<const Record256*>(data256) + row * (n_in / 256);
  }
};

}  // namespace foretoken::kernels
