// The kernel of up to 16 rows of x, by tiles of a pass.
#pragma once

#include "sixteen_kernel.cuh"
#include "sixteen_launch.cuh"

namespace phiquant::cuda {

template <class Shape>
SixteenMaps maps_of(const SixteenPlan& plan) {
  SixteenMaps maps{};
  maps.x = map_groups(x_of(plan), 8 * Shape::kEights, kColumn, kQuad);
  for (int last = 0; last < 2; last++) {
    const int rows = (last ? Shape::kLast : Shape::kPart) * kSixteen;
    maps.index[last] = map_boxes(index_of(plan), rows, 128);
    if (Shape::kDeviation > 0) {
      maps.high[last] = map_boxes(deviation_of(plan), rows, Shape::kHighRow);
    }
  }
  return maps;
}

// `clusters`: of the weight, or of each expert.
inline void finish(SixteenPlan& plan, const SixteenCut& cut, int clusters) {
  plan.units = cut.units;
  plan.columns = cut.columns;
  plan.each = clusters;
  plan.share = plan.tiles / clusters;
  plan.more = plan.tiles % clusters;
  plan.aligned_words = plan.groups % (8 * cut.blocks) == 0 &&
                       (reinterpret_cast<uintptr_t>(plan.task.planes.scale) & 15) == 0;
}

template <class Shape>
void launch_shape(SixteenPlans plans, const SixteenCut& cut, cudaStream_t stream) {
  SixteenMapsOf maps{};
  plans.shares = cut.shares;
  for (int i = 0; i < plans.count; i++) {
    const int clusters = Shape::kExperts ? cut.each : cut.shares.begin[i + 1] - cut.shares.begin[i];
    finish(plans.of[i], cut, clusters);
    maps.of[i] = maps_of<Shape>(plans.of[i]);
  }
  const int bytes = SixteenRoom<Shape>(cut.columns, cut.units).bytes + 1024;
  const auto kernel = sixteen_rows<Shape>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  launch_overlapping_clusters(kernel, static_cast<unsigned>(cut.shares.blocks() * cut.blocks),
                              static_cast<unsigned>(cut.blocks), kSixteenThreads, bytes, stream,
                              plans, maps);
}

template <int deviation, bool experts, int tall = kMostTall>
void launch_tall(const SixteenPlans& plans, const SixteenCut& cut, cudaStream_t stream) {
  if constexpr (tall > 1) {
    if (cut.tall < tall) return launch_tall<deviation, experts, tall - 1>(plans, cut, stream);
  }
  if (cut.eights == 1) {
    return launch_shape<SixteenShape<deviation, 1, tall, experts>>(plans, cut, stream);
  }
  launch_shape<SixteenShape<deviation, 2, tall, experts>>(plans, cut, stream);
}

template <int deviation, bool experts>
void launch_sixteen(const SixteenPlans& plans, const SixteenCut& cut, cudaStream_t stream) {
  launch_tall<deviation, experts>(plans, cut, stream);
}

}  // namespace phiquant::cuda
