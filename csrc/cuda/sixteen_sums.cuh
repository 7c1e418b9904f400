// The sums of a block's warps, and of the two blocks of a cluster, to results: in one order, so
// that these have the same bits always, and for any number of rows of x.
#pragma once

#include "sixteen_terms.cuh"
#include "sums.cuh"

namespace phiquant::cuda {

// All threads of the cluster's blocks; what they wrote to shared memory before is seen after.
__device__ __forceinline__ void sync_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
#endif
}

// A float of the cluster's block `rank`, at this block's address.
__device__ __forceinline__ float float_of_block(const float* at, int rank) {
  float value = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %1, %2;\n"
      "ld.shared::cluster.f32 %0, [there];\n"
      "}"
      : "=f"(value)
      : "r"(shared_address(at)), "r"(rank)
      : "memory");
#endif
  return value;
}

// Of one pass; `memory`: of the block.
template <class Shape>
struct SixteenSums {
  static constexpr int kRows = 8 * Shape::kEights;  // of x
  static constexpr int kWarp = Shape::kTall * Shape::kTileSums;

  const SixteenPlan& plan;
  const SixteenPlace& place;
  float* memory;
  int first, tall;  // tiles of this pass

  // [tile][row of x][row of the weight] of a warp; `row`: of the lane.
  __device__ __forceinline__ void leave(
      int warp, int lane, int row, const EightSums<Shape::kEights> (&sums)[Shape::kTall]) const {
    float* const to = memory + warp * kWarp + row;
#pragma unroll
    for (int tile = 0; tile < Shape::kTall; tile++) {
#pragma unroll
      for (int i = 0; i < Shape::kEights * 4; i++) {
        const int m = i / 4 * 8 + (lane & 3) * 2 + i % 2;
        to[tile * Shape::kTileSums + m * Shape::kSumRow + i % 4 / 2 * 8] =
            sums[tile].of[i / 4][i % 4];
      }
    }
  }

  // Of all warps.
  __device__ __forceinline__ float of_warps(int i) const {
    const int row = i % kSixteen, tile = i / kSixteen % tall, m = i / kSixteen / tall;
    const float* const from = memory + tile * Shape::kTileSums + m * Shape::kSumRow + row;
    float sum = 0;
#pragma unroll
    for (int warp = 0; warp < kColumnWarps; warp++) sum += from[warp * kWarp];
    return sum;
  }

  __device__ __forceinline__ void store(int i, float sum) const {
    const int64_t row = int64_t{first} * kSixteen + i % (kSixteen * tall);
    const int m = i / (kSixteen * tall);
    if (m >= plan.task.m || row >= plan.task.out_features) return;
    if (plan.task.dtype == Dtype::kBFloat16) {
      store_sum<__nv_bfloat16>(plan.task, m, row, sum);
    } else {
      store_sum<__half>(plan.task, m, row, sum);
    }
  }

  // By all threads, once all have left their sums.
  __device__ __forceinline__ void finish() const {
    const int thread = static_cast<int>(threadIdx.x), count = kRows * kSixteen * tall;
    if (place.blocks == 1) {
      for (int i = thread; i < count; i += kSixteenThreads) store(i, of_warps(i));
      return;
    }
    float* const mine = memory + kColumnWarps * kWarp;
    for (int i = thread; i < count; i += kSixteenThreads) mine[i] = of_warps(i);
    sync_cluster();
    const int begin = place.rank * (count / 2), end = begin + count / 2;
    for (int i = begin + thread; i < end; i += kSixteenThreads) {
      store(i, float_of_block(mine + i, 0) + float_of_block(mine + i, 1));
    }
    sync_cluster();
  }
};

}  // namespace phiquant::cuda
