#include "sixteen_shapes.cuh"

namespace phiquant::cuda {

void launch_sixteen_2(const SixteenPlan& plan, const SixteenCut& cut, cudaStream_t stream) {
  launch_deviation<2>(plan, cut, stream);
}

}  // namespace phiquant::cuda
