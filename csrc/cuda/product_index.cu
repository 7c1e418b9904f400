// Which products of indices with one row of x a kernel takes, and with how many warps.
#include "product_index.h"

#include "product_index.cuh"

namespace phiquant::cuda {
namespace {

// Of scales: products with X stay within fp32.
constexpr int kMostExponent = 64;

int groups_in(const ProductTask& task) { return static_cast<int>(groups_of(task.layout)); }

// Blocks of a product, their warps, and how many partial sums a block keeps: one for each of its
// warps and of its tiles. No warps if not even a few of them have room.
struct IndexGrid {
  static constexpr int kFewWarps = 4, kMostTiles = 256;
  int64_t blocks;
  int warps, segments, bytes;

  explicit IndexGrid(const ProductTask& task) {
    const int64_t tiles = (task.out_features + kTile - 1) / kTile;
    blocks = attribute(cudaDevAttrMultiProcessorCount);
    if (blocks * kMostTiles < tiles) blocks = (tiles + kMostTiles - 1) / kMostTiles;
    if (blocks > tiles) blocks = tiles;
    const int room =
        attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - static_cast<int>(sizeof(IndexShared));
    for (warps = kIndexWarps; warps >= kFewWarps; warps--) {
      segments = warps + static_cast<int>((tiles + blocks - 1) / blocks);
      bytes = IndexParts(groups_in(task), warps, segments).end;
      if (bytes <= room) return;
    }
    warps = 0;
  }
};

template <bool brain>
void launch(const ProductTask& task, cudaStream_t stream) {
  const IndexGrid grid(task);
  const auto kernel = product_of_indices<brain>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, grid.bytes);
  launch_overlapping(kernel, static_cast<unsigned>(grid.blocks), grid.warps * 32, grid.bytes,
                     stream, task, groups_in(task), grid.segments);
}

}  // namespace

bool multiplies_indices(const ProductTask& task) {
  const Layout& layout = task.layout;
  return attribute(cudaDevAttrComputeCapabilityMajor) == 9 && task.m == 1 &&
         layout.deviation_bits == 0 && groups_in(task) % 2 == 0 &&
         reinterpret_cast<uintptr_t>(task.planes.scale) % 4 == 0 &&
         layout.exponent <= kMostExponent && layout.exponent >= -kMostExponent &&
         IndexGrid(task).warps > 0;
}

void multiply_indices(const ProductTask& task, cudaStream_t stream) {
  if (task.dtype == Dtype::kBFloat16) return launch<true>(task, stream);
  launch<false>(task, stream);
}

}  // namespace phiquant::cuda
