// How a product of up to 16 rows of x is cut, and launched.
#pragma once

#include "many_rows_map.h"
#include "overlap.cuh"
#include "sixteen.cuh"

namespace phiquant::cuda {

// Clusters of one or two blocks, whose they are, and how many an expert's; eights of rows of x and
// tiles of a pass, columns of a cluster's first block (whole boxes; the other one has no more),
// units of a quad's ring, and how long that may take, in tiles of a warp.
struct SixteenCut {
  BlockShares shares;
  int each, blocks, eights, tall, columns, units;
  double cost;

  bool fits() const { return units >= 2; }
};

SixteenCut cut_into(const SixteenPlans& plans, int blocks);

// For as many experts as may have rows: no block has more than a pass.
SixteenCut cut_experts(const SixteenPlan& plan);

// Each in a file of its own, since they take long to compile.
template <int deviation, bool experts>
void launch_sixteen(const SixteenPlans& plans, const SixteenCut& cut, cudaStream_t stream);

inline Matrix x_of(const SixteenPlan& plan) {
  const ProductTask& task = plan.task;
  return {task.x, task.m, task.layout.columns, task.layout.columns * 2, 2};
}
inline Matrix plane_of(const SixteenPlan& plan, const uint8_t* plane, int bits) {
  const int64_t bytes = row_bytes(plan.task.layout, bits);
  return {plane, plan.task.out_features * plan.experts, bytes, bytes, 1};
}
inline Matrix index_of(const SixteenPlan& plan) {
  return plane_of(plan, plan.task.planes.index, 4);
}
inline Matrix deviation_of(const SixteenPlan& plan) {
  return plane_of(plan, plan.task.planes.deviation, plan.task.layout.deviation_bits);
}

}  // namespace phiquant::cuda
