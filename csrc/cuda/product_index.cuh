// Products of one row of x with indices alone: blocks stay and take their tiles as in
// product_kernel.cuh, but x becomes digits, and 8-bit tensor operations multiply.
//
// Before the kernel ahead has ended, nothing is read but a first stage, to the L2 cache, which is
// never stale: what that kernel may be is not known, nor whether it writes a weight. A second stage
// would keep x waiting.
//
// Instructions a weight, executed: 2.75, of which 1.1 for operands, 0.1 for B's other order, 0.2
// for mma, 0.2 for loads from shared memory, 0.5 for scales, the rest for rings, scale words and
// control; and 170 of a thread for 8 columns of x, in every block.
#pragma once

#include "product_digits.cuh"
#include "product_kernel.cuh"

namespace phiquant::cuda {

inline constexpr int kIndexWarps = 16;  // of a block, at most
using IndexRing = Ring<0, 2>;

// Where the parts of a block's shared memory begin, in bytes; the warps' rings are the first.
struct IndexParts {
  static constexpr int kWords = kTile * kStageGroups / 2;  // of a warp's stage
  static constexpr int kZeros = 2 * kStepBytes;            // as far as a lane reads of a stage
  int groups;                                              // of x, in whole stages
  int words, zeros, fragments, steps, partial, end;

  __host__ __device__ IndexParts(int groups_of_row, int warps, int segments) {
    groups = (groups_of_row + kStageGroups - 1) / kStageGroups * kStageGroups;
    words = warps * IndexRing::kBytes;
    zeros = words + warps * kWords * 4;
    fragments = zeros + kZeros;
    steps = fragments + groups / kStepGroups * kStepBytes;
    partial = steps + groups / kStepGroups * static_cast<int>(sizeof(StepParts));
    end = partial + segments * kTile * static_cast<int>(sizeof(float));
  }
};

// A warp's first stage and its scale words, to the L2 cache.
__device__ __forceinline__ void fetch_first(const Cut& cut, const ProductTask& task,
                                            const Place& place, int lane) {
  if (place.left <= 0 || lane >= kTile) return;
  const int64_t row = cut.first_row(place.tile) + min(lane, cut.rows_of(place.tile) - 1);
  const int64_t group = row * cut.groups + place.stage * kStageGroups;
  fetch_to_l2(task.planes.index + group * (kGroup / 2));
  fetch_to_l2(task.planes.scale + group);
}

__device__ __forceinline__ IndexWorker worker_of(const IndexShared& shared, uint8_t* memory,
                                                 const IndexParts& parts, int warp, int lane) {
  const int second = lane >> 4, digit = lane >> 2 & 3;
  const bool there = second == (lane >> 1 & 1);  // this lane's column is of its group
  const int digits = parts.fragments + digit_place(digit, lane & 3);
  return {shared,
          reinterpret_cast<const StepParts*>(memory + parts.steps),
          {memory + (there ? digits : parts.zeros), memory + (there ? digits ^ 64 : parts.zeros)},
          there ? kStepBytes : 0,
          reinterpret_cast<uint32_t*>(memory + parts.words) + warp * IndexParts::kWords,
          lane,
          shared.tables};
}

__device__ __forceinline__ void multiply_stages(const Cut& cut, const uint16_t* scale, Place place,
                                                IndexRing* ring, StageWords* words,
                                                IndexWorker* worker, float* partial) {
  while (place.left > 0) {
    worker->words[worker->lane] = checked_words(words->coming[0]);
    words->load(cut, scale, worker->lane);
    const int group = place.stage * kStageGroups, tile = place.tile;
    const bool tile_ends = place.advance(cut);
    ring->await();
    worker->multiply_stage(ring->shared + ring->at, group);
    ring->refill();
    if (tile_ends || place.left == 0) worker->finish(partial + tile * kTile);
  }
}

template <bool brain>
__global__ void __launch_bounds__(kIndexWarps * 32, 1)
    product_of_indices(const __grid_constant__ Products products, int groups, int segments) {
  using T = std::conditional_t<brain, __nv_bfloat16, __half>;
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ IndexShared shared;
  const int lane = lane_of_thread(), warp = static_cast<int>(threadIdx.x) / 32;
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int block = static_cast<int>(blockIdx.x), weight = products.shares.weight_of(block);
  const ProductTask& task = products.of[weight];
  const Cut cut(task, products.shares.among(weight, block), groups, warps);
  const Place place(cut, warp);
  fetch_first(cut, task, place, lane);
  IndexRing ring(cut, task.planes, memory + warp * IndexRing::kBytes, warp, lane);
  const IndexParts parts(groups, warps, segments);
  for (int i = static_cast<int>(threadIdx.x); i < IndexParts::kZeros / 4;
       i += static_cast<int>(blockDim.x))
    reinterpret_cast<uint32_t*>(memory + parts.zeros)[i] = 0;
  shared.fill(power_of_two(task.layout.exponent));
  wait_for_earlier_kernels();
  admit_next_kernel();

  StageWords words{nullptr, 0, place, {}};
  const DigitsPreparation<brain> preparation{
      static_cast<const uint16_t*>(task.x), static_cast<int>(task.layout.columns), parts.groups,
      memory + parts.fragments, reinterpret_cast<StepParts*>(memory + parts.steps)};
  preparation.run([&] {
    words.begin(cut, task.planes.scale, lane);
    ring.begin();
  });
  __syncthreads();
  auto* const partial = reinterpret_cast<float*>(memory + parts.partial);
  IndexWorker worker = worker_of(shared, memory, parts, warp, lane);
  multiply_stages(cut, task.planes.scale, place, &ring, &words, &worker, partial + warp * kTile);
  __syncthreads();
  store_tiles<T, 1>(task, cut, partial);
}

}  // namespace phiquant::cuda
