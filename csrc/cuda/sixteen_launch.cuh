// How a product of up to 16 rows of x is cut, and launched.
#pragma once

#include "many_rows_map.h"
#include "overlap.cuh"
#include "sixteen.cuh"

namespace phiquant::cuda {

// Clusters of one or two blocks, tiles of a pass, columns of a cluster's first block (whole boxes;
// the other one has no more), units of a quad's ring, and how long that may take, in tiles of a
// warp.
struct SixteenCut {
  int clusters, blocks, tall, columns, units;
  double cost;

  bool fits() const { return units >= 2; }
};

SixteenCut cut_into(const SixteenPlan& plan, int blocks);

void launch_sixteen_0(const SixteenPlan& plan, const SixteenCut& cut, cudaStream_t stream);
void launch_sixteen_2(const SixteenPlan& plan, const SixteenCut& cut, cudaStream_t stream);
void launch_sixteen_4(const SixteenPlan& plan, const SixteenCut& cut, cudaStream_t stream);

inline Matrix x_of(const ProductTask& task) {
  return {task.x, task.m, task.layout.columns, task.layout.columns * 2, 2};
}
inline Matrix index_of(const ProductTask& task) {
  const int64_t bytes = row_bytes(task.layout, 4);
  return {task.planes.index, task.out_features, bytes, bytes, 1};
}
inline Matrix deviation_of(const ProductTask& task) {
  const int64_t bytes = row_bytes(task.layout, task.layout.deviation_bits);
  return {task.planes.deviation, task.out_features, bytes, bytes, 1};
}

}  // namespace phiquant::cuda
