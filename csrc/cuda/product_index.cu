// Which products of indices with one row of x a kernel takes, and with how many warps.
#include "product_index.h"

#include "product_index.cuh"

namespace phiquant::cuda {
namespace {

constexpr int kMostExponent = 64;  // of scales: products with X stay within fp32

struct Shape {
  static constexpr int kMostWarps = 16;  // of a block
  static constexpr int kBlocks = 1;      // of a multiprocessor
  static constexpr int kDepth = 2;       // stages of a ring
  static constexpr int kEarly = 2;       // stages of a warp that come to the L2 cache early
  static constexpr int kLater = 2;
  static constexpr int kAdmit = 0;
};

int groups_in(const ProductTask& task) { return static_cast<int>(groups_of(task.layout)); }

// Blocks of a product, their warps, and how many partial sums a block keeps: one for each of its
// warps and of its tiles. No warps if not even a few of them have room.
struct Grid {
  static constexpr int kFewWarps = 4, kMostTiles = 256;
  int64_t blocks;
  int warps, segments, bytes;

  explicit Grid(const ProductTask& task) {
    const int64_t tiles = (task.out_features + kTile - 1) / kTile;
    blocks = attribute(cudaDevAttrMultiProcessorCount) * Shape::kBlocks;
    if (blocks * kMostTiles < tiles) blocks = (tiles + kMostTiles - 1) / kMostTiles;
    if (blocks > tiles) blocks = tiles;
    const int room = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) -
                     static_cast<int>(sizeof(IndexShared));
    for (warps = Shape::kMostWarps; warps >= kFewWarps; warps--) {
      segments = warps + static_cast<int>((tiles + blocks - 1) / blocks);
      const int rings = warps * Ring<0, Shape::kDepth>::kBytes;
      bytes = IndexParts(groups_in(task), warps, rings, segments).end;
      if (bytes <= room) return;
    }
    warps = 0;
  }
};

template <bool brain>
void launch(const ProductTask& task, cudaStream_t stream) {
  const Grid grid(task);
  const auto kernel = product_of_indices<Shape, brain>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, grid.bytes);
  launch_overlapping(kernel, static_cast<unsigned>(grid.blocks), grid.warps * 32, grid.bytes,
                     stream, task, groups_in(task), grid.segments);
}

}  // namespace

bool multiplies_indices(const ProductTask& task) {
  const Layout& layout = task.layout;
  return task.m == 1 && layout.deviation_bits == 0 && groups_in(task) % 2 == 0 &&
         reinterpret_cast<uintptr_t>(task.planes.scale) % 4 == 0 &&
         layout.exponent <= kMostExponent && layout.exponent >= -kMostExponent &&
         Grid(task).warps > 0;
}

void multiply_indices(const ProductTask& task, cudaStream_t stream) {
  if (task.dtype == Dtype::kBFloat16) return launch<true>(task, stream);
  launch<false>(task, stream);
}

}  // namespace phiquant::cuda
