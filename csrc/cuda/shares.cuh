// How items that follow each other are shared out among the warps of a block.
#pragma once

#include <cstdint>

namespace phiquant::cuda {

struct WarpShares {
  int share, more;  // items of a warp, but of the first `more` warps, which have one more

  __device__ __forceinline__ WarpShares(int items, int warps)
      : share(items / warps), more(items % warps) {}

  __device__ __forceinline__ int begin(int warp) const { return warp * share + min(warp, more); }
  __device__ __forceinline__ int warp_of(int item) const {
    const int first = more * (share + 1);
    return item < first ? item / (share + 1) : more + (item - first) / share;
  }
};

// Tiles of a block, which takes every tile that is a multiple of the grid after its first one.
__device__ __forceinline__ int tiles_of_block(int64_t out_features, int rows_of_tile) {
  const auto all = static_cast<int>((out_features + rows_of_tile - 1) / rows_of_tile);
  const auto blocks = static_cast<int>(gridDim.x);
  return (all - static_cast<int>(blockIdx.x) + blocks - 1) / blocks;
}

}  // namespace phiquant::cuda
