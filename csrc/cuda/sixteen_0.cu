#include "sixteen_shapes.cuh"

namespace phiquant::cuda {

void launch_sixteen_0(const SixteenPlan& plan, const SixteenCut& cut, cudaStream_t stream) {
  launch_deviation<0>(plan, cut, stream);
}

}  // namespace phiquant::cuda
