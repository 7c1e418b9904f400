// How a product of 5 to 16 rows of x with indices alone is cut. A tile is 16 rows of the weight, a
// column 64 columns of it: one group. A block, or a cluster of two that take half of the columns
// each, has as many tiles as any other, one below the other, and all columns: so no two blocks but
// those of a cluster have sums to add up. A unit is some columns of all tiles of a pass; each warp
// takes one tile of it, and one of the parts that its columns are shared out in.
#pragma once

#include "kernels.h"

namespace phiquant::cuda {

inline constexpr int kSixteen = 16;                              // rows of a tile, and of x at most
inline constexpr int kColumnWarps = 16;                          // of a block, that multiply
inline constexpr int kSixteenThreads = (kColumnWarps + 1) * 32;  // one more warp fills the ring
inline constexpr int kColumn = 64;                               // columns of a group
inline constexpr int kBoxColumns = 4;  // that are copied at once: 128 bytes a row
inline constexpr int kMostTall = 8;    // tiles of a pass
inline constexpr int kMostUnits = 8;   // of a ring
inline constexpr int kScaleBytes = 8;  // of a row and column

// What is known to the host.
struct SixteenPlan {
  ProductTask task;
  int groups;          // of a row
  int tiles;           // of the weight
  int tall;            // tiles of a pass, at most
  int units;           // of a ring
  bool aligned_words;  // 8 scale words can be read at once
};

// How the columns of a unit are shared out, so that as many warps as possible have some.
template <int parts>
struct UnitShape {
  static constexpr int kParts = parts, kEach = kParts == kColumnWarps ? 1 : 2;
  static constexpr int kColumns = kParts * kEach;
  static_assert(kColumns % kBoxColumns == 0);
};
inline constexpr int parts_of(int tall) { return tall > 4 ? 2 : tall > 2 ? 4 : tall > 1 ? 8 : 16; }
inline constexpr int columns_of_unit(int tall) { return tall > 1 ? 2 * parts_of(tall) : 16; }

// A unit in shared memory: boxes of all tiles' rows, then x, column after column, `eights` of 8
// rows.
template <int eights>
struct SixteenUnit {
  static constexpr int kXBytes = eights * 8 * kColumn * 2;  // of a column
  static __host__ __device__ int index_bytes(int tall, int columns) {
    return columns / kBoxColumns * tall * kSixteen * 128;
  }
  static __host__ __device__ int bytes(int tall, int columns) {
    return index_bytes(tall, columns) + columns * kXBytes;
  }
};

// Shared memory: what scales weights, [tile][column][row], then the ring; and, once all have
// multiplied, their sums instead, and the block's.
template <int eights>
struct SixteenRoom {
  static constexpr int kRow = 20;  // floats from one row of x to the next: no two meet in a bank
  static constexpr int kTileSums = 8 * eights * kRow;

  // In whole kilobytes, as copies want them.
  static __host__ __device__ int scales(int tall, int columns) {
    return (tall * columns * kSixteen * kScaleBytes + 1023) / 1024 * 1024;
  }
  static __host__ __device__ int sums(int tall) {
    return (kColumnWarps * kTileSums + 8 * eights * kSixteen * tall) * 4;
  }
};

// What a block takes.
struct SixteenPlace {
  int rank, blocks;    // in its cluster
  int first, last;     // tiles
  int begin, columns;  // of the weight's columns

  __device__ __forceinline__ explicit SixteenPlace(const SixteenPlan& plan) {
    uint32_t its_rank = 0, its_blocks = 1;
#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(its_rank));
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(its_blocks));
#endif
    rank = static_cast<int>(its_rank);
    blocks = static_cast<int>(its_blocks);
    const int cluster = static_cast<int>(blockIdx.x) / blocks;
    const int clusters = static_cast<int>(gridDim.x) / blocks;
    first = static_cast<int>(int64_t{plan.tiles} * cluster / clusters);
    last = static_cast<int>(int64_t{plan.tiles} * (cluster + 1) / clusters);
    // Halves begin with a box.
    const int boxes = (plan.groups + kBoxColumns - 1) / kBoxColumns;
    begin = boxes * rank / blocks * kBoxColumns;
    columns = min(plan.groups, boxes * (rank + 1) / blocks * kBoxColumns) - begin;
  }

  __device__ __forceinline__ int units(int of_unit) const {
    return (columns + of_unit - 1) / of_unit;
  }
};

}  // namespace phiquant::cuda
