// Products of one row of x with indices alone: blocks stay, as in product_kernel.cuh, but x becomes
// digits, and 8-bit tensor operations multiply.
#pragma once

#include <type_traits>

#include "product_digits.cuh"
#include "sums.cuh"

namespace phiquant::cuda {

// Where the parts of a block's shared memory begin, in bytes; the warps' rings are the first.
struct IndexParts {
  static constexpr int kWords = kTile * kStageGroups / 2;  // of a warp's stage
  static constexpr int kZeros = kStepBytes + 128;          // a step of nothing, anywhere in a bank
  int groups;                                              // of x, in whole stages
  int words, zeros, fragments, steps, partial, end;

  __host__ __device__ IndexParts(int groups_of_row, int warps, int rings, int segments) {
    groups = (groups_of_row + kStageGroups - 1) / kStageGroups * kStageGroups;
    words = rings;
    zeros = words + warps * kWords * 4;
    fragments = zeros + kZeros;
    steps = fragments + groups / kStepGroups * kStepBytes;
    partial = steps + groups / kStepGroups * static_cast<int>(sizeof(StepParts));
    end = partial + segments * kTile * static_cast<int>(sizeof(float));
  }
};

// The first stages of a warp, and their scale words, to the L2 cache.
template <int stages>
__device__ __forceinline__ void fetch_stages(const Cut& cut, const ProductTask& task,
                                             const Place& place, int lane) {
  const int row = lane & 15;
#pragma unroll
  for (int i = lane >> 4; i < stages; i += 2) {
    if (i >= place.left) return;
    const int stage = place.stage + i, tile = place.tile + stage / cut.stages;
    const int64_t at = cut.first_row(tile) + min(row, cut.rows_of(tile) - 1);
    const int group = stage % cut.stages * kStageGroups;
    fetch_to_l2(task.planes.index + (at * cut.groups + group) * 32);
    fetch_to_l2(task.planes.scale + at * cut.groups + group);
  }
}

// Sums of a tile come from the warps that have stages of it, in their order; warp w leaves those of
// tile t at w + t.
template <class T>
__device__ __forceinline__ void store_tiles_of_one(const ProductTask& task, const Cut& cut,
                                                   const float* partial) {
  for (int i = static_cast<int>(threadIdx.x); i < cut.tiles * kTile;
       i += static_cast<int>(blockDim.x)) {
    const int tile = i / kTile, j = i % kTile;
    const int64_t row = cut.first_row(tile) + j;
    if (row >= task.out_features) continue;
    const int last = cut.warp_of((tile + 1) * cut.stages - 1);
    float sum = 0;
    for (int warp = cut.warp_of(tile * cut.stages); warp <= last; warp++)
      sum += partial[(warp + tile) * kTile + j];
    store_sum<T>(task, 0, row, sum);
  }
}

template <class Shape, bool brain>
__global__ void __launch_bounds__(Shape::kMostWarps * 32, Shape::kBlocks)
    product_of_indices(const __grid_constant__ ProductTask task, int groups, int segments) {
  using T = std::conditional_t<brain, __nv_bfloat16, __half>;
  using Stages = Ring<0, Shape::kDepth>;
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ IndexShared shared;
  const int lane = lane_of_thread(), warp = static_cast<int>(threadIdx.x) / 32;
  const int warps = static_cast<int>(blockDim.x) / 32;
  const Cut cut(task, groups, warps);
  Place place(cut, warp);
  fetch_stages<Shape::kFetched>(cut, task, place, lane);
  Stages ring(cut, task.planes, memory + warp * Stages::kBytes, warp, lane);
  const IndexParts parts(groups, warps, warps * Stages::kBytes, segments);
  for (int i = static_cast<int>(threadIdx.x); i < IndexParts::kZeros / 4;
       i += static_cast<int>(blockDim.x))
    reinterpret_cast<uint32_t*>(memory + parts.zeros)[i] = 0;
  shared.fill(power_of_two(task.layout.exponent));
  wait_for_earlier_kernels();
  if (Shape::kAdmit == 0) admit_next_kernel();

  auto* const steps = reinterpret_cast<StepParts*>(memory + parts.steps);
  auto* const partial = reinterpret_cast<float*>(memory + parts.partial);
  StageWords words;
  const DigitsPreparation<brain> preparation{static_cast<const uint16_t*>(task.x),
                                             task.layout.columns, parts.groups,
                                             memory + parts.fragments, steps};
  preparation.run([&] {
    if (place.left > 0) {
      words.turn_to(cut, task.planes.scale, place, lane);
      words.load();
    }
    ring.begin();
  });
  __syncthreads();
  const int second = lane >> 4, digit = lane >> 2 & 3;
  const bool there = second == (lane >> 1 & 1);  // this lane's column is of its group
  IndexWorker worker{
      shared,
      steps,
      memory + (there ? parts.fragments + digit * 64 + (lane & 3) * 16
                      : parts.zeros + (second == 0 ? 32 : 0)),
      there ? kStepBytes : 0,
      reinterpret_cast<uint32_t*>(memory + parts.words) + warp * IndexParts::kWords,
      lane,
      shared.tables};
  const int admits = Shape::kAdmit == 1 ? 0 : place.left / 2;
  while (place.left > 0) {
    if (Shape::kAdmit == 2 && place.left == admits) admit_next_kernel();
    worker.words[lane] = words.coming;
    const int group = place.stage * kStageGroups, tile = place.tile;
    const bool tile_ends = place.advance(cut);
    if (place.left > 0) {
      if (tile_ends) {
        words.turn_to(cut, task.planes.scale, place, lane);
      } else {
        words.advance();
      }
      words.load();
    }
    ring.await();
    worker.multiply_stage(ring.shared + ring.at, group);
    ring.refill();
    if (tile_ends || place.left == 0) worker.finish(partial + (warp + tile) * kTile);
  }
  if (Shape::kAdmit == 1) admit_next_kernel();
  __syncthreads();
  store_tiles_of_one<T>(task, cut, partial);
}

}  // namespace phiquant::cuda
