// The configuration of AMX's tiles. Included by the _avx512_amx files alone.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace foretoken::kernels {
namespace {

struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

[[gnu::always_inline]] inline void configure_tiles(const TileConfig& config) {
  // The intrinsic says that it reads eight bytes: without this the others need not be written.
  asm volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
}

}  // namespace
}  // namespace foretoken::kernels
