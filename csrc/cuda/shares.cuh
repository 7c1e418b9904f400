// How items that follow each other are shared out among the warps of a block, and tiles of weights
// among blocks.
#pragma once

#include "kernels.h"

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

// A block's number among those of its weight, and how many these are.
struct BlockOf {
  int number, count;

  // Tiles of the block, which takes every tile that is a multiple of `count` after its first one.
  __device__ __forceinline__ int tiles(int64_t out_features, int rows_of_tile) const {
    const auto all = static_cast<int>((out_features + rows_of_tile - 1) / rows_of_tile);
    return (all - number + count - 1) / count;
  }
  __device__ __forceinline__ int64_t tile(int i) const {
    return number + int64_t{static_cast<unsigned>(i)} * count;
  }
};

__device__ __forceinline__ BlockOf whole_grid() {
  return {static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x)};
}

// Weights whose products are made together have blocks (or clusters) of their own, as many as make
// the most tiles of a block fewest.
struct BlockShares {
  int begin[kMostWeights + 1];  // of a weight that is not there: where all end
  int tiles;                    // of a block, at most

  BlockShares() : begin{}, tiles(0) {}

  // All blocks are one weight's.
  explicit BlockShares(int blocks) : begin{0, blocks, blocks, blocks}, tiles(0) {}

  // `tiles_of`: of each of `count` weights. `most`: blocks, as many as weights at least.
  BlockShares(const int (&tiles_of)[kMostWeights], int count, int64_t most) : begin{} {
    int64_t all = 0, blocks = 0;
    for (int i = 0; i < count; i++) all += tiles_of[i];
    tiles = static_cast<int>((all - 1) / most);
    do {
      tiles++;
      blocks = 0;
      for (int i = 0; i < count; i++) blocks += (tiles_of[i] + tiles - 1) / tiles;
    } while (blocks > most);
    for (int i = 0; i < kMostWeights; i++) {
      const int its = i < count ? (tiles_of[i] + tiles - 1) / tiles : 0;
      begin[i + 1] = begin[i] + its;
    }
    // What is left over is the first one's.
    const auto spare = static_cast<int>(most - blocks), wanted = tiles_of[0] - begin[1];
    for (int i = 1; i <= kMostWeights; i++) begin[i] += spare < wanted ? spare : wanted;
  }

  int blocks() const { return begin[kMostWeights]; }
  __device__ __forceinline__ int weight_of(int block) const {
    static_assert(kMostWeights == 3);
    return (block >= begin[1]) + (block >= begin[2]);
  }
  __device__ __forceinline__ BlockOf among(int weight, int block) const {
    return {block - begin[weight], begin[weight + 1] - begin[weight]};
  }
};

}  // namespace phiquant::cuda
