// Which products of indices with one row of x a kernel takes, and with what of shared memory.
#include "product_index.h"

#include "product_index.cuh"

namespace phiquant::cuda {
namespace {

constexpr int kMostExponent = 64;  // of scales: products with X stay within fp32
constexpr int kMostTiles = 96;     // of a block

// A weight of very many rows has more blocks than there are multiprocessors.
int64_t blocks_of(const ProductTask& task) {
  const int64_t tiles = (task.out_features + kTile - 1) / kTile;
  int64_t blocks = attribute(cudaDevAttrMultiProcessorCount);
  if (blocks * kMostTiles < tiles) blocks = (tiles + kMostTiles - 1) / kMostTiles;
  return blocks < tiles ? blocks : tiles;
}

// With a ring as deep as there is room for; none if not even two units have.
IndexPlan plan_of(const ProductTask& task, int64_t blocks) {
  const int64_t tiles = (task.out_features + kTile - 1) / kTile;
  const auto groups = static_cast<int>(groups_of(task.layout));
  IndexPlan plan{task,
                 groups,
                 groups / kStageGroups,
                 static_cast<int>(tiles / blocks),
                 static_cast<int>(tiles % blocks),
                 kMostDepth,
                 (blocks * kTile - 1) * groups};
  const int room = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) -
                   static_cast<int>(sizeof(IndexShared) + sizeof(IndexBarriers));
  while (plan.depth > 1 && IndexParts(plan).end > room) plan.depth--;
  if (plan.depth < 2) plan.depth = 0;
  return plan;
}

template <bool brain>
void launch(const ProductTask& task, cudaStream_t stream) {
  const int64_t blocks = blocks_of(task);
  const IndexPlan plan = plan_of(task, blocks);
  const int bytes = IndexParts(plan).end;
  const auto kernel = product_of_indices<brain>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  launch_overlapping(kernel, static_cast<unsigned>(blocks), kIndexThreads, bytes, stream, plan);
}

}  // namespace

bool multiplies_indices(const ProductTask& task) {
  const Layout& layout = task.layout;
  return attribute(cudaDevAttrComputeCapabilityMajor) == 9 && task.m == 1 &&
         layout.deviation_bits == 0 && groups_of(layout) % 8 == 0 &&
         reinterpret_cast<uintptr_t>(task.planes.scale) % 16 == 0 &&
         layout.exponent <= kMostExponent && layout.exponent >= -kMostExponent &&
         plan_of(task, blocks_of(task)).depth > 0;
}

void multiply_indices(const ProductTask& task, cudaStream_t stream) {
  if (task.dtype == Dtype::kBFloat16) return launch<true>(task, stream);
  launch<false>(task, stream);
}

}  // namespace phiquant::cuda
