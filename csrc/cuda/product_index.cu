// Which products of indices with one row of x a kernel takes, and with how many warps.
#include "product_index.h"

#include <algorithm>

#include "product_index.cuh"

namespace phiquant::cuda {
namespace {

// Of scales: products with X stay within fp32.
constexpr int kMostExponent = 64;

int groups_in(const ProductTask& task) { return static_cast<int>(groups_of(task.layout)); }

ProductGrid grid_for(const ProductTasks& tasks) {
  constexpr int kMostTiles = 256;
  const int groups = groups_in(tasks.of[0]);
  const int64_t room = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) -
                       static_cast<int64_t>(sizeof(IndexShared));
  return {tasks, kMostTiles, kIndexWarps, room,
          [&](int warps, int segments) { return IndexParts(groups, warps, segments).end; }};
}

template <bool brain>
void launch(const ProductTasks& tasks, cudaStream_t stream) {
  const ProductGrid grid = grid_for(tasks);
  const auto kernel = product_of_indices<brain>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, grid.bytes);
  launch_overlapping(kernel, static_cast<unsigned>(grid.shares.blocks()), grid.warps * 32,
                     grid.bytes, stream, products_of(tasks, grid.shares), groups_in(tasks.of[0]),
                     grid.segments);
}

bool takes(const ProductTask& task) {
  const Layout& layout = task.layout;
  return task.m == 1 && layout.deviation_bits == 0 && groups_in(task) % 2 == 0 &&
         reinterpret_cast<uintptr_t>(task.planes.scale) % 4 == 0 &&
         layout.exponent <= kMostExponent && layout.exponent >= -kMostExponent;
}

}  // namespace

bool multiplies_indices(const ProductTasks& tasks) {
  return attribute(cudaDevAttrComputeCapabilityMajor) == 9 &&
         std::all_of(tasks.of, tasks.of + tasks.count, takes) && grid_for(tasks).warps > 0;
}

void multiply_indices(const ProductTasks& tasks, cudaStream_t stream) {
  if (tasks.of[0].dtype == Dtype::kBFloat16) return launch<true>(tasks, stream);
  launch<false>(tasks, stream);
}

}  // namespace phiquant::cuda
