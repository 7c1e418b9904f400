// Which of a weight's tiles a block of threads takes, and which of their columns each warp.
#pragma once

#include "shares.cuh"

namespace phiquant::cuda {

// How the 512-column blocks of a block's tiles are shared out.
struct TileCut {
  static constexpr int kRows = 8;  // of a tile, and of a strip

  BlockOf block;
  int tiles, blocks;  // blocks: of a tile
  WarpShares shares;  // of the blocks of all tiles

  __device__ __forceinline__ TileCut(int64_t out_features, BlockOf its_block, int blocks_of_row,
                                     int warps)
      : block(its_block),
        tiles(block.tiles(out_features, kRows)),
        blocks(blocks_of_row),
        shares(tiles * blocks, warps) {}
  __device__ __forceinline__ int64_t first_row(int tile) const { return block.tile(tile) * kRows; }
};

}  // namespace phiquant::cuda
