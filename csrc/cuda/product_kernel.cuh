// Products of at most 8 rows of x with a lossy weight. Blocks stay, one a multiprocessor: x is
// prepared once, codes come from rings, and sums are added up when all of a block's tiles are done,
// in one order. The weight begins to come into the L2 cache while the kernel before still runs, but
// x is asked for first after it: behind a ring's worth of weights it would arrive microseconds
// later.
//
// Instructions a weight, M = 1, counted in machine code for indices alone: 2.1 to make p and p^3,
// 1/4 for mma, 0.4 for loads and addresses, 0.3 for rings, 0.3 for scales, 0.3 for control: 3.6.
// An H100 has 6.7 at 2.35 TB/s; logic, shifts and byte permutations take two slots each.
#pragma once

#include <type_traits>

#include "product_grid.h"
#include "product_worker.cuh"
#include "sums.cuh"

namespace phiquant::cuda {

// What was fastest on an H100 of what was tried. Deeper rings and more warps were slower: what they
// ask for at first is in the way of x.
template <int deviation, int rows>
struct Shape {
  static constexpr int kMostWarps = deviation == 8 ? 12 : 16;  // of a block
  static constexpr int kDepth = 2;                             // stages of a ring
  using Stages = Ring<deviation, kDepth>;
};

// Where the parts of a block's shared memory begin, in bytes; the warps' rings are the first.
struct Parts {
  int groups;  // of x's fragments, in whole chunks
  int fragments, back, partial, end;

  __host__ __device__ Parts(int groups_of_row, int rows, int rings, int segments) {
    groups = (groups_of_row + kChunk - 1) / kChunk * kChunk;
    fragments = rings;
    back = fragments + groups * rows * kGroupBytes;
    partial = back + groups * rows * static_cast<int>(sizeof(float));
    end = partial + segments * kTile * rows * static_cast<int>(sizeof(float));
  }
};

// Sums of a tile come from the warps that have stages of it, in their order; warp w leaves those of
// tile t at w + t.
template <class T, int rows>
__device__ __forceinline__ void store_tiles(const ProductTask& task, const Cut& cut,
                                            const float* partial) {
  constexpr int kSums = kTile * rows;
  for (int i = static_cast<int>(threadIdx.x); i < cut.tiles * kSums;
       i += static_cast<int>(blockDim.x)) {
    const int tile = i / kSums, j = i % kSums;
    const int64_t row = cut.first_row(tile) + j / rows;
    if (j % rows >= task.m || row >= task.out_features) continue;
    const int last = cut.shares.warp_of((tile + 1) * cut.stages - 1);
    float sum = 0;
    for (int warp = cut.shares.warp_of(tile * cut.stages); warp <= last; warp++)
      sum += partial[(warp + tile) * kSums + j];
    store_sum<T>(task, j % rows, row, sum);
  }
}

template <int deviation, int rows, bool brain>
__global__ void __launch_bounds__(Shape<deviation, rows>::kMostWarps * 32, 1)
    product(const __grid_constant__ Products products, int groups, int segments) {
  using T = std::conditional_t<brain, __nv_bfloat16, __half>;
  using Shaped = Shape<deviation, rows>;
  using Stages = typename Shaped::Stages;
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ Shared<rows> shared;
  const int lane = lane_of_thread(), warp = static_cast<int>(threadIdx.x) / 32;
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int block = static_cast<int>(blockIdx.x), weight = products.shares.weight_of(block);
  const ProductTask& task = products.of[weight];
  const Cut cut(task, products.shares.among(weight, block), groups, warps);
  Place place(cut, warp);
  Stages ring(cut, task.planes, memory + warp * Stages::kBytes, warp, lane);
  ring.fetch();
  shared.fill();
  wait_for_earlier_kernels();
  admit_next_kernel();

  const Parts parts(groups, rows, warps * Stages::kBytes, segments);
  auto* const fragments = reinterpret_cast<uint4*>(memory + parts.fragments);
  auto* const back = reinterpret_cast<float*>(memory + parts.back);
  auto* const partial = reinterpret_cast<float*>(memory + parts.partial);
  Worker<deviation, rows, brain, Shaped::kDepth> worker{
      shared,       fragments + ((lane >> 2) % rows) * 4 + (lane & 3),
      shared.zeros, back,
      lane,         power_of_two(task.layout.exponent)};
  const Preparation<brain, rows> preparation{static_cast<const uint16_t*>(task.x),
                                             task.m,
                                             task.layout.columns,
                                             parts.groups,
                                             fragments,
                                             back};
  preparation.run([&] {
    if (place.left > 0) {
      worker.words.turn_to(cut, task.planes.scale, place.tile, place.stage & ~1, lane);
      worker.words.load();
    }
    ring.begin();
  });
  __syncthreads();
  worker.begin_tile();
  worker.begin_sums();
  while (place.left > 0) {
    worker.words.advance(cut, task.planes.scale, lane);
    const int done = worker.multiply_chunk(&ring, cut, place), tile = place.tile;
    const bool tile_ends = place.advance(cut, done);
    if (tile_ends || place.left == 0) worker.finish(partial + (warp + tile) * kTile * rows);
  }
  __syncthreads();
  store_tiles<T, rows>(task, cut, partial);
}

}  // namespace phiquant::cuda
