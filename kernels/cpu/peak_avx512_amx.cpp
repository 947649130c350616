#include <immintrin.h>

#include "amx_tiles.h"
#include "peak_functions.h"

namespace foretoken::kernels {

// Tile products of 16 by 64 by 16 into four independent tiles: as many as one instruction's latency
// (52 cycles) takes at one every 16.
std::int64_t int8_spin_avx512_amx(std::int64_t iterations, std::int32_t* sink) {
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

}  // namespace foretoken::kernels
