// The matrix unit: eight tiles of 16 rows of 64 bytes, configured for a thread while a product
// runs.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "phiquant/layout.h"

namespace phiquant::cpu::PHIQUANT_ISA {

inline constexpr int kTileRows = 16;  // of weights, of pairs of columns, of sums
inline constexpr int kTileBytes = 1024;
inline constexpr int kStep = 32;  // columns that one instruction multiplies, in bf16

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0..3 hold sums, 4 and 5 weights [16, 64 bytes], 6 and 7 rows of x, interleaved
// [16, 4 bytes of each]. `width`: how many rows of x a tile holds, 1..16.
class Tiles {
 public:
  PHIQUANT_MEMBER explicit Tiles(int width) {
    TileConfig config;
    for (int tile = 0; tile < 8; tile++) {
      config.rows[tile] = kTileRows;
      config.row_bytes[tile] = tile == 4 || tile == 5 ? 64 : static_cast<uint16_t>(4 * width);
    }
    // GCC's own intrinsic names 8 bytes of it as its input and lets the rest be optimised away.
    asm volatile("ldtilecfg %0" : : "m"(config));
  }
  PHIQUANT_MEMBER ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// Between stores to memory and loads of it into tiles, of which compilers know nothing.
PHIQUANT_INLINE void before_tile_loads() { asm volatile("" : : : "memory"); }

}  // namespace phiquant::cpu::PHIQUANT_ISA
