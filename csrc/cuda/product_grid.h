// How many blocks of threads multiply, and what they are given.
#pragma once

#include "overlap.cuh"
#include "stages.cuh"

namespace phiquant::cuda {

// Products of one x, and which blocks make which of them.
struct Products {
  ProductTask of[kMostWeights];
  BlockShares shares;
};

// One block a multiprocessor; more, where one would have more than `most_tiles`.
inline BlockShares share_tiles(const ProductTasks& tasks, int64_t most_tiles) {
  int tiles[kMostWeights] = {};
  int64_t all = 0;
  for (int i = 0; i < tasks.count; i++) {
    tiles[i] = static_cast<int>((tasks.of[i].out_features + kTile - 1) / kTile);
    all += tiles[i];
  }
  int64_t blocks = attribute(cudaDevAttrMultiProcessorCount);
  if (blocks * most_tiles < all) blocks = (all + most_tiles - 1) / most_tiles + tasks.count - 1;
  return {tiles, tasks.count, blocks};
}

// Blocks, their warps, and how many partial sums a block keeps: one for each of its warps and of
// its tiles. No warps if not even a few of them have room.
struct ProductGrid {
  static constexpr int kFewWarps = 4;
  BlockShares shares;
  int warps, segments, bytes = 0;

  // `bytes_of(warps, segments)`: of a block's shared memory, of which there is `room`.
  template <class Bytes>
  ProductGrid(const ProductTasks& tasks, int64_t most_tiles, int most_warps, int64_t room,
              const Bytes& bytes_of)
      : shares(share_tiles(tasks, most_tiles)), warps(most_warps), segments(0) {
    for (; warps >= kFewWarps; warps--) {
      segments = warps + shares.tiles;
      bytes = bytes_of(warps, segments);
      if (bytes <= room) return;
    }
    warps = 0;
  }
};

inline Products products_of(const ProductTasks& tasks, const BlockShares& shares) {
  return {{tasks.of[0], tasks.of[1], tasks.of[2]}, shares};
}

}  // namespace phiquant::cuda
