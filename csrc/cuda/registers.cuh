// Registers that the four warps of a warpgroup take from others, or leave to them: Hopper's own
// instructions. Elsewhere all threads keep what the launch gave them.
#pragma once

namespace phiquant::cuda {

template <int registers>
__device__ __forceinline__ void give_registers() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
#endif
}
template <int registers>
__device__ __forceinline__ void take_registers() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
#endif
}

}  // namespace phiquant::cuda
