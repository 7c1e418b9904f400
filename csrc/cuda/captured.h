// Kernels of a captured stream that wait for the one ahead themselves begin as soon as it has
// begun.
//
// A kernel of others admits nobody before its end, so what follows it would be launched then. In a
// graph the edge between them can say otherwise: `griddepcontrol.wait` waits for the end all the
// same. That has to be the end of everything: the kernel ahead must have begun after all before it.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <vector>

namespace phiquant::cuda {

#if CUDART_VERSION >= 13000
inline constexpr auto capture_info = cudaStreamGetCaptureInfo;
inline constexpr auto replace_dependencies = cudaStreamUpdateCaptureDependencies;
inline constexpr auto node_dependencies = cudaGraphNodeGetDependencies;
#elif CUDART_VERSION >= 12030
inline constexpr auto capture_info = cudaStreamGetCaptureInfo_v3;
inline constexpr auto replace_dependencies = cudaStreamUpdateCaptureDependencies_v2;
inline constexpr auto node_dependencies = cudaGraphNodeGetDependencies_v2;
#endif

#if CUDART_VERSION >= 12030

// What the next node of a capture comes after, and how.
struct Ahead {
  std::vector<cudaGraphNode_t> nodes;
  std::vector<cudaGraphEdgeData> edges;

  explicit Ahead(size_t count) : nodes(count), edges(count) {}
};

// An error stays with nobody: the kernel is launched as without a graph.
inline bool succeeds(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  return error == cudaSuccess;
}

inline bool is_plain(const cudaGraphEdgeData& edge) {
  return edge.type == cudaGraphDependencyTypeDefault && edge.from_port == 0;
}

// Whether a node is a kernel that begins when all that it comes after has ended.
inline bool is_plain_kernel(cudaGraphNode_t node) {
  cudaGraphNodeType type{};
  size_t count = 0;
  if (!succeeds(cudaGraphNodeGetType(node, &type)) || type != cudaGraphNodeTypeKernel) return false;
  if (!succeeds(node_dependencies(node, nullptr, nullptr, &count))) return false;
  if (count == 0) return true;
  Ahead ahead(count);
  return succeeds(node_dependencies(node, ahead.nodes.data(), ahead.edges.data(), &count)) &&
         std::all_of(ahead.edges.begin(), ahead.edges.end(), is_plain);
}

// The next kernel of `stream`, launched without attributes of overlap, begins when those ahead have
// begun. False, and nothing is changed, if the stream is not captured or others than such kernels
// are ahead.
inline bool begin_with_those_ahead(cudaStream_t stream) {
  cudaStreamCaptureStatus status{};
  const cudaGraphNode_t* nodes = nullptr;
  const cudaGraphEdgeData* edges = nullptr;
  size_t count = 0;
  if (!succeeds(capture_info(stream, &status, nullptr, nullptr, &nodes, &edges, &count)) ||
      status != cudaStreamCaptureStatusActive || count == 0) {
    return false;
  }
  Ahead ahead(count);
  for (size_t i = 0; i < count; i++) {
    if ((edges != nullptr && !is_plain(edges[i])) || !is_plain_kernel(nodes[i])) return false;
    ahead.nodes[i] = nodes[i];
    ahead.edges[i].from_port = cudaGraphKernelNodePortLaunchCompletion;
    ahead.edges[i].type = cudaGraphDependencyTypeProgrammatic;
  }
  return succeeds(replace_dependencies(stream, ahead.nodes.data(), ahead.edges.data(), count,
                                       cudaStreamSetCaptureDependencies));
}

#else

inline bool begin_with_those_ahead(cudaStream_t) { return false; }

#endif

}  // namespace phiquant::cuda
