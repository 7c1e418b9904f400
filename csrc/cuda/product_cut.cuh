// Which of a product's tiles a block of threads takes, and which of their columns each warp.
#pragma once

#include "kernels.h"

namespace phiquant::cuda {

// How the 512-column blocks of a block's tiles are shared out.
struct TileCut {
  static constexpr int kRows = 8;  // of a tile, and of a strip

  int tiles, blocks;  // blocks: of a tile
  int share, more;    // blocks of a warp, but of the first `more` warps, which have one more

  __device__ __forceinline__ TileCut(int64_t out_features, int blocks_of_row, int warps)
      : blocks(blocks_of_row) {
    const auto all = static_cast<int>((out_features + kRows - 1) / kRows);
    const auto grid = static_cast<int>(gridDim.x);
    tiles = (all - static_cast<int>(blockIdx.x) + grid - 1) / grid;
    share = tiles * blocks / warps;
    more = tiles * blocks % warps;
  }
  __device__ __forceinline__ int begin(int warp) const { return warp * share + min(warp, more); }
  __device__ __forceinline__ int warp_of(int block) const {
    const int first = more * (share + 1);
    return block < first ? block / (share + 1) : more + (block - first) / share;
  }
  static __device__ __forceinline__ int64_t first_row(int tile) {
    return (blockIdx.x + int64_t{tile} * gridDim.x) * kRows;
  }
};

}  // namespace phiquant::cuda
