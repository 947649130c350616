#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/simd.h"

#if defined(__AMX_INT8__)
#include "kernels/cpu/amx_tiles.h"
#endif

namespace foretoken::kernels::FORETOKEN_ISA {
namespace {

typedef std::uint64_t Words __attribute__((vector_size(64)));

std::uint64_t sum_words(const std::byte* data, std::size_t bytes) {
  Words sums[8] = {};
  for (std::size_t i = 0; i < bytes; i += 512)
#pragma GCC unroll 8
    for (std::size_t j = 0; j < 8; ++j) {
      __builtin_prefetch(data + i + 64 * j + 4096);  // as the linear layers do
      sums[j] += load_lanes<Words>(data + i + 64 * j);
    }
  std::uint64_t total = 0;
#pragma GCC unroll 8
  for (const Words& sum : sums)
    for (int lane = 0; lane < 8; ++lane) total += sum[lane];
  return total;
}

#if defined(__AMX_INT8__)

// Tile products of 16 by 64 by 16 into four independent tiles: as many as one instruction's latency
// (52 cycles) takes at one every 16.
std::int64_t int8_spin(std::int64_t iterations, std::int32_t* sink) {
  configure_tiles(TileConfig{});
  alignas(64) std::uint8_t a[1024], b[1024];
  alignas(64) std::int32_t sums[256];
  for (int i = 0; i < 1024; ++i) a[i] = 5, b[i] = 3;
  _tile_loadd(4, a, 64);
  _tile_loadd(5, b, 64);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  // A product is a few hundred times as much as a vector instruction's.
  const std::int64_t turns = (iterations + 63) / 64;
  for (std::int64_t i = 0; i < turns; ++i) {
    _tile_dpbsud(0, 4, 5);
    _tile_dpbsud(1, 4, 5);
    _tile_dpbsud(2, 4, 5);
    _tile_dpbsud(3, 4, 5);
  }
#define FORETOKEN_ADD_SUM(tile) \
  _tile_stored(tile, sums, 64); \
  *sink += sums[0];
  FORETOKEN_ADD_SUM(0)
  FORETOKEN_ADD_SUM(1)
  FORETOKEN_ADD_SUM(2)
  FORETOKEN_ADD_SUM(3)
#undef FORETOKEN_ADD_SUM
  _tile_release();
  return turns * 4 * 16 * 64 * 16;
}

#else

// Products of nibbles by signed bytes, added to 32 bits: what a linear layer does. Latency 5 times
// two a cycle on the widest machines, with room.
std::int64_t int8_spin(std::int64_t iterations, std::int32_t* sink) {
  constexpr int kChains = 12;
#if defined(__AVX2__)
#define FORETOKEN_REGISTER "+v"
#else
#define FORETOKEN_REGISTER "+r"
#endif
  Simd::I a = Simd::set_byte(3), b = Simd::set_byte(5);
  Simd::I sums[kChains];  // every loop over them unrolled, so that they stay in registers
#pragma GCC unroll 16
  for (Simd::I& sum : sums) sum = Simd::set_int(0);
  for (std::int64_t i = 0; i < iterations; ++i)
#pragma GCC unroll 16
    for (Simd::I& sum : sums) {
      // Each product is to be made, not remembered.
      asm volatile("" : FORETOKEN_REGISTER(a), FORETOKEN_REGISTER(b));
      sum = add_products<4>(sum, a, b);
    }
#undef FORETOKEN_REGISTER
#pragma GCC unroll 16
  for (const Simd::I& sum : sums) {
    std::int32_t lanes[Simd::kLanes];
    Simd::store_int(lanes, sum);
    *sink += lanes[0];
  }
  return iterations * kChains * Simd::kLanes * 4;
}

#endif

}  // namespace

constinit const PeakOps kPeak = {sum_words, int8_spin};

}  // namespace foretoken::kernels::FORETOKEN_ISA
