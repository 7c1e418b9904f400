// How a product of up to 16 rows of x is cut. A tile is 16 rows of the weight, a column 64 columns
// of it: one group. A block, or a cluster of two that take half of the columns each, has as many
// tiles as any other, one below the other, and all columns: so no two blocks but those of a cluster
// have sums to add up. Each warp takes all tiles of a pass, in every 16th column: what it makes of
// x serves all of them.
//
// A step is 16 columns, one a warp; a box four of them, those of a quad of warps, which is what
// copies bring; and a unit is the codes of a few of a pass's tiles in a box, so that work begins
// early and rooms are free early.
#pragma once

#include "grouped.h"
#include "shares.cuh"

namespace phiquant::cuda {

inline constexpr int kSixteen = 16;      // rows of a tile, and of x at most
inline constexpr int kColumnWarps = 16;  // of a block
inline constexpr int kSixteenThreads = kColumnWarps * 32;
inline constexpr int kColumn = 64;  // columns of a group
inline constexpr int kQuad = 4;     // warps that share a box
inline constexpr int kQuads = kColumnWarps / kQuad;
inline constexpr int kMostTall = 8;   // tiles of a pass
inline constexpr int kMostUnits = 8;  // of a quad's ring

// Tiles of a unit: a pass's in equal parts, of which the last may have fewer. Measured.
constexpr int unit_tiles(int deviation, int tall) {
  const int most = deviation == 0 || tall > 4 ? 3 : 4, parts = (tall + most - 1) / most;
  return (tall + parts - 1) / parts;
}

// What is known to the host. With experts, `task` has the planes of all of them, one after another,
// all rows of x, and the rows of an expert's weight.
struct SixteenPlan {
  ProductTask task;
  Ends ends;           // of each expert's rows of x; of null without
  int experts, each;   // `each`: clusters of an expert; of all without
  int groups;          // of a row
  int tiles;           // of the weight
  int share, more;     // tiles of a cluster, but of the first `more`, which have one more
  int columns;         // of a cluster's first block
  int units;           // of a quad's ring
  bool aligned_words;  // 8 scale words can be read at once
  bool whole_groups;   // x has no short last group
};

// Products of one x: plans that differ in what is of the weight alone, and whose clusters are
// whose. Experts are one of them.
struct SixteenPlans {
  SixteenPlan of[kMostWeights];
  int count;
  BlockShares shares;
};

// `tall`: tiles of a pass, at most. `experts`: rows are those of experts, which the kernel finds.
template <int deviation, int eights, int tall, bool experts>
struct SixteenShape {
  static_assert(tall <= kMostTall && (deviation == 0 || deviation == 2 || deviation == 4));
  static constexpr int kDeviation = deviation, kEights = eights, kTall = tall;
  static constexpr bool kExperts = experts;
  static constexpr int kPart = unit_tiles(deviation, tall);  // tiles of a unit, at most
  static constexpr int kParts = (tall + kPart - 1) / kPart;  // units of a step
  static constexpr int kLast = tall - (kParts - 1) * kPart;  // tiles of its last unit

  // A unit: indices, then deviations; 128 bytes a row, or 64 of 2 deviation bits.
  static constexpr int kHighRow = 16 * deviation * 2;
  static constexpr int kIndexBytes = kPart * kSixteen * 128;
  static constexpr int kUnitBytes = kIndexBytes + kPart * kSixteen * kHighRow;
  // A box of x: column after column, `eights` of 8 rows of 128 bytes.
  static constexpr int kXBytes = eights * 8 * kColumn * 2;
  static constexpr int kBoxBytes = kQuad * kXBytes;

  // What scales the weights of a warp's column: bend and scale of each row.
  static constexpr int kRows = tall * kSixteen;
  static constexpr int kFactorBytes = kRows * 8;

  // Sums of a warp: floats from one row of the weight to the next, so that no two meet in a bank.
  static constexpr int kSumRow = 8 * eights + 4;
  static constexpr int kTileSums = kSixteen * kSumRow;
  static constexpr int kSumBytes =
      (kColumnWarps * tall * kTileSums + 8 * eights * kSixteen * tall) * 4;
};

// Shared memory: the quads' rings of units, a box of x for each quad, what scales each warp's
// column, and scale words, [column][row]. Once all have multiplied: the warps' sums instead, and
// the block's.
template <class Shape>
struct SixteenRoom {
  int words, factors, units, boxes, bytes;  // where they begin, where all ends

  // Copies want whole kilobytes.
  __host__ __device__ SixteenRoom(int columns, int unit_count) {
    units = 0;
    boxes = units + kQuads * unit_count * Shape::kUnitBytes;
    factors = boxes + kQuads * Shape::kBoxBytes;
    words = factors + kColumnWarps * Shape::kFactorBytes;
    bytes = words + columns * Shape::kRows * 2;
    if (bytes < Shape::kSumBytes) bytes = Shape::kSumBytes;
  }
};

// What a block takes.
struct SixteenPlace {
  int expert;          // among those that have rows
  int rank, blocks;    // in its cluster
  int weight;          // of those that are multiplied together
  int first, last;     // tiles
  int begin, columns;  // of the weight's columns

  __device__ __forceinline__ explicit SixteenPlace(const SixteenPlans& plans) {
    uint32_t its_rank = 0, its_blocks = 1;
#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(its_rank));
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(its_blocks));
#endif
    rank = static_cast<int>(its_rank);
    blocks = static_cast<int>(its_blocks);
    int number = static_cast<int>(blockIdx.x) >> (blocks - 1);  // of one or two
    weight = plans.shares.weight_of(number);
    number -= plans.shares.begin[weight];
    const SixteenPlan& plan = plans.of[weight];
    expert = plan.experts == 1 ? 0 : number / plan.each;
    const int cluster = number - expert * plan.each;
    first = cluster * plan.share + min(cluster, plan.more);
    last = first + plan.share + (cluster < plan.more ? 1 : 0);
    begin = rank * plan.columns;
    columns = min(plan.columns, plan.groups - begin);
  }

  __device__ __forceinline__ int steps() const {
    return (columns + kColumnWarps - 1) / kColumnWarps;
  }
};

}  // namespace phiquant::cuda
