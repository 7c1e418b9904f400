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

template <class T, int eights, class Shape>
struct SixteenSums {
  using Room = SixteenRoom<eights>;
  static constexpr int kRows = 8 * eights;  // of x

  const SixteenPlan& plan;
  const SixteenPlace& place;
  float* memory;    // all of the block's
  int first, tall;  // tiles of this pass

  // [row of x][row of the weight] of a warp; `row`: of the lane.
  __device__ __forceinline__ void leave(int warp, int lane, int row,
                                        const EightSums<eights>& sums) const {
    float* const to = memory + warp * Room::kTileSums + row;
#pragma unroll
    for (int i = 0; i < eights * 4; i++) {
      const int m = i / 4 * 8 + (lane & 3) * 2 + i % 2;
      to[m * Room::kRow + i % 4 / 2 * 8] = sums.of[i / 4][i % 4];
    }
  }

  // Of the warps that have a tile.
  __device__ __forceinline__ float of_warps(int i) const {
    const int row = i % kSixteen, tile = i / kSixteen % tall, m = i / kSixteen / tall;
    const float* const from =
        memory + tile * Shape::kParts * Room::kTileSums + m * Room::kRow + row;
    float sum = 0;
#pragma unroll
    for (int part = 0; part < Shape::kParts; part++) sum += from[part * Room::kTileSums];
    return sum;
  }

  __device__ __forceinline__ void store(int i, float sum) const {
    const int64_t row = int64_t{first} * kSixteen + i % (kSixteen * tall);
    const int m = i / (kSixteen * tall);
    if (m < plan.task.m && row < plan.task.out_features) store_sum<T>(plan.task, m, row, sum);
  }

  // By all threads, once all have left their sums.
  __device__ __forceinline__ void finish() const {
    const int thread = static_cast<int>(threadIdx.x), count = kRows * kSixteen * tall;
    if (place.blocks == 1) {
      for (int i = thread; i < count; i += kSixteenThreads) store(i, of_warps(i));
      return;
    }
    float* const mine = memory + kColumnWarps * Room::kTileSums;
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
