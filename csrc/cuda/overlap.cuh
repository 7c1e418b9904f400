// Kernels that begin while the one before them on their stream ends (compute capability 9.0 on; on
// older devices they begin after it, as always). Until `wait_for_earlier_kernels` a kernel must
// read nothing that a kernel could have written, but it may fetch it into the L2 cache, which is
// never stale. What it reads afterwards must bypass the L1 cache, which may be.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "captured.h"

namespace phiquant::cuda {

// All of a kernel's threads call this before the first of them ends.
__device__ __forceinline__ void wait_for_earlier_kernels() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may begin wherever there is room for it. It has to wait for all results of this
// one: Inductor's kernels (triton.enable_pdl) would wait for the last of several alone, which
// phiquant/graph_passes.py sees to.
__device__ __forceinline__ void admit_next_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ __forceinline__ void fetch_to_l2(const void* from) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}

inline int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&value, which, device);
  return value;
}

// `cluster`: how many of the blocks are together; 1 on devices that know none.
template <class... Parameters, class... Arguments>
void launch_overlapping_clusters(void (*kernel)(Parameters...), unsigned blocks, unsigned cluster,
                                 int threads, int bytes, cudaStream_t stream,
                                 const Arguments&... arguments) {
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {cluster, 1, 1};
  const bool is_hopper = attribute(cudaDevAttrComputeCapabilityMajor) >= 9;
  const bool is_told = is_hopper && begin_with_those_ahead(stream);  // by edges of a graph
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = static_cast<unsigned>(threads);
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.stream = stream;
  config.attrs = attributes + is_told;
  config.numAttrs = is_hopper ? !is_told + (cluster > 1) : 0;
  cudaLaunchKernelEx(&config, kernel, arguments...);
}

template <class... Parameters, class... Arguments>
void launch_overlapping(void (*kernel)(Parameters...), unsigned blocks, int threads, int bytes,
                        cudaStream_t stream, const Arguments&... arguments) {
  launch_overlapping_clusters(kernel, blocks, 1, threads, bytes, stream, arguments...);
}

}  // namespace phiquant::cuda
