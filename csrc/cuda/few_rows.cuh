// What the kernels of products of 9 rows of x and more share: how the work is cut, and what lies in
// the workspace between them.
//
// A unit is 256 rows of the weight and 128 columns of it. Units are numbered along the columns
// first, and every block takes as many in a row, so that all blocks end together: of a block's
// units those of its first and of its last tile may be shared with other blocks. Sums of shared
// tiles go to the workspace, and whoever arrives last adds them up, in the order of the columns.
#pragma once

#include "kernels.h"
#include "overlap.cuh"

namespace phiquant::cuda {

inline constexpr int kUnitRows = 256;  // rows of the weight of a unit
inline constexpr int kUnitGroups = 2;  // groups of 64 columns of a unit
inline constexpr int kCounters = kUnitRows / 16;
inline constexpr int kFragment = 1024;  // bytes of 8 rows of x in one group

// What is known to the host of one launch. `stages`: units of a tile, along the columns.
struct FewPlan {
  ProductTask task;
  int groups, stages, tiles, blocks;
  int share, longer;  // units of a block, and how many blocks take one more
  bool paired;        // scale words can be read four at a time
  // The workspace: x as the tensor cores take it, by groups; what each row of x is to be multiplied
  // with again; two tiles' sums for each block; how many have left theirs, of 16 rows of a tile.
  uint4* x;
  float* back;
  float4* partial;
  unsigned* arrived;
};

// The first blocks take one unit more than the others.
__device__ __forceinline__ int first_unit(const FewPlan& plan, int block) {
  return block * plan.share + min(block, plan.longer);
}
// The block that has this unit.
__device__ __forceinline__ int block_of(const FewPlan& plan, int unit) {
  const int rest = unit - plan.longer * (plan.share + 1);
  return rest < 0 ? unit / (plan.share + 1) : plan.longer + rest / plan.share;
}

// Fills plan.x and plan.back for `rows`, a multiple of 8, zeros from task.m on; clears
// plan.arrived. The product may start before it ends.
void prepare_few(const FewPlan& plan, int rows, cudaStream_t stream);

}  // namespace phiquant::cuda
