// How a product is cut: a tile is 16 rows of the weight, a stage 4 groups of their columns. Blocks
// take tiles in turn; the warps of a block each take as many stages of its tiles, one after the
// other, and never wait for each other before the block's sums are added up.
#pragma once

#include "kernels.h"
#include "shares.cuh"

namespace phiquant::cuda {

inline constexpr int kTile = 16;
inline constexpr int kStageGroups = 4;
inline constexpr int kChunk = 8;  // groups whose scale words a lane loads together

struct Cut {
  int64_t out_features;
  BlockOf block;
  int groups;         // of a row
  int tiles;          // of this block
  int stages;         // of a tile
  WarpShares shares;  // of the stages of all tiles

  __device__ __forceinline__ Cut(const ProductTask& task, BlockOf its_block, int groups_of_row,
                                 int warps)
      : out_features(task.out_features),
        block(its_block),
        groups(groups_of_row),
        tiles(block.tiles(out_features, kTile)),
        stages((groups_of_row + kStageGroups - 1) / kStageGroups),
        shares(tiles * stages, warps) {}

  __device__ __forceinline__ int64_t first_row(int tile) const { return block.tile(tile) * kTile; }
  __device__ __forceinline__ int rows_of(int tile) const {
    const int64_t left = out_features - first_row(tile);
    return left < kTile ? static_cast<int>(left) : kTile;
  }
};

// A stage of a tile, and how many a warp has left from it on.
struct Place {
  int tile, stage, left;

  __device__ __forceinline__ Place(const Cut& cut, int warp)
      : tile(cut.shares.begin(warp) / cut.stages),
        stage(cut.shares.begin(warp) % cut.stages),
        left(cut.shares.begin(warp + 1) - cut.shares.begin(warp)) {}

  // By as many stages as are left in this tile at most: whether a tile begins.
  __device__ __forceinline__ bool advance(const Cut& cut, int by = 1) {
    left -= by;
    stage += by;
    if (stage < cut.stages) return false;
    stage = 0;
    tile++;
    return true;
  }
};

// Asked for once: the compiler would rather ask again in every stage.
__device__ __forceinline__ int lane_of_thread() {
  int lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

}  // namespace phiquant::cuda
