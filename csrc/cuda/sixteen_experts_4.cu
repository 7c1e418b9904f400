#include "sixteen_shapes.cuh"

namespace phiquant::cuda {

template void launch_sixteen<4, true>(const SixteenPlans&, const SixteenCut&, cudaStream_t);

}  // namespace phiquant::cuda
