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
  static constexpr int kZeros = 2 * kStepBytes;            // as far as a lane reads of a stage
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

// `count` stages of a warp from its `first` on, and their scale words, to the L2 cache: no fewer
// than one tile has.
__device__ __forceinline__ void fetch_stages(const Cut& cut, const ProductTask& task, Place place,
                                             int first, int count, int lane) {
  const int row = lane & 15;
#pragma unroll
  for (int i = first + (lane >> 4); i < first + count; i += 2) {
    if (i >= place.left) return;
    int stage = place.stage + i, tile = place.tile;
    while (stage >= cut.stages) stage -= cut.stages, tile++;
    const int64_t at = cut.first_row(tile) + min(row, cut.rows_of(tile) - 1);
    const int group = stage * kStageGroups;
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
  fetch_stages(cut, task, place, 0, Shape::kEarly, lane);
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
  StageWords words{nullptr, 0, place, {}};
  const DigitsPreparation<brain> preparation{static_cast<const uint16_t*>(task.x),
                                             static_cast<int>(task.layout.columns), parts.groups,
                                             memory + parts.fragments, steps};
  preparation.run([&] {
    words.begin(cut, task.planes.scale, lane);
    ring.begin();
    fetch_stages(cut, task, place, Shape::kDepth, Shape::kLater, lane);
  });
  __syncthreads();
  const int second = lane >> 4, digit = lane >> 2 & 3;
  const bool there = second == (lane >> 1 & 1);  // this lane's column is of its group
  const uint8_t* const mine =
      memory + (there ? parts.fragments + digit_place(digit, lane & 3) : parts.zeros);
  IndexWorker worker{
      shared,
      steps,
      {mine, there ? memory + ((parts.fragments + digit_place(digit, lane & 3)) ^ 64) : mine},
      there ? kStepBytes : 0,
      reinterpret_cast<uint32_t*>(memory + parts.words) + warp * IndexParts::kWords,
      lane,
      shared.tables};
  while (place.left > 0) {
    if (Shape::kAdmit > 0 && place.left == Shape::kAdmit) admit_next_kernel();
    worker.words[lane] = checked_words(words.coming[0]);
    words.load(cut, task.planes.scale, lane);
    const int group = place.stage * kStageGroups, tile = place.tile;
    const bool tile_ends = place.advance(cut);
    ring.await();
    worker.multiply_stage(ring.shared + ring.at, group);
    ring.refill();
    if (tile_ends || place.left == 0) worker.finish(partial + (warp + tile) * kTile);
  }
  __syncthreads();
  store_tiles_of_one<T>(task, cut, partial);
}

}  // namespace phiquant::cuda
