// The kernel of up to 16 rows of x, by tiles of a pass.
#pragma once

#include "sixteen_kernel.cuh"
#include "sixteen_launch.cuh"

namespace phiquant::cuda {

template <class Shape>
void launch_shape(SixteenPlan plan, const SixteenCut& cut, cudaStream_t stream) {
  const ProductTask& task = plan.task;
  plan.units = cut.units;
  plan.columns = cut.columns;
  plan.each = cut.each;
  plan.share = plan.tiles / cut.each;
  plan.more = plan.tiles % cut.each;
  plan.aligned_words = plan.groups % (8 * cut.blocks) == 0 &&
                       (reinterpret_cast<uintptr_t>(task.planes.scale) & 15) == 0;
  SixteenMaps maps{};
  maps.x = map_groups(x_of(plan), 8 * Shape::kEights, kColumn, kQuad);
  for (int last = 0; last < 2; last++) {
    const int rows = (last ? Shape::kLast : Shape::kPart) * kSixteen;
    maps.index[last] = map_boxes(index_of(plan), rows, 128);
    if (Shape::kDeviation > 0) {
      maps.high[last] = map_boxes(deviation_of(plan), rows, Shape::kHighRow);
    }
  }
  const int bytes = SixteenRoom<Shape>(cut.columns, cut.units).bytes + 1024;
  const auto kernel = sixteen_rows<Shape>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  launch_overlapping_clusters(kernel, static_cast<unsigned>(cut.clusters * cut.blocks),
                              static_cast<unsigned>(cut.blocks), kSixteenThreads, bytes, stream,
                              plan, maps);
}

template <int deviation, bool experts, int tall = kMostTall>
void launch_tall(const SixteenPlan& plan, const SixteenCut& cut, cudaStream_t stream) {
  if constexpr (tall > 1) {
    if (cut.tall < tall) return launch_tall<deviation, experts, tall - 1>(plan, cut, stream);
  }
  if (cut.eights == 1) {
    return launch_shape<SixteenShape<deviation, 1, tall, experts>>(plan, cut, stream);
  }
  launch_shape<SixteenShape<deviation, 2, tall, experts>>(plan, cut, stream);
}

template <int deviation, bool experts>
void launch_sixteen(const SixteenPlan& plan, const SixteenCut& cut, cudaStream_t stream) {
  launch_tall<deviation, experts>(plan, cut, stream);
}

}  // namespace phiquant::cuda
