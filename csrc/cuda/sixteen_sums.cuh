// The sums of a block's warps, and of the two blocks of a cluster, to results: in one order, so
// that these have the same bits always, and for any number of rows of x.
#pragma once

#include "sixteen_rows.cuh"
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

// Four floats of the cluster's block `rank`, at this block's address.
__device__ __forceinline__ float4 floats_of_block(const float4* at, int rank) {
  float4 value{};
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there];\n"
      "}"
      : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
      : "r"(shared_address(at)), "r"(rank)
      : "memory");
#endif
  return value;
}

__device__ __forceinline__ float4 sum_of(const float4& a, const float4& b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

// Of one pass; `memory`: of the block. Four sums of a row of the weight, for four rows of x, are
// added up by a thread.
template <class Shape>
struct SixteenSums {
  static constexpr int kFours = 2 * Shape::kEights * Shape::kRows;
  static constexpr int kWarp = Shape::kTall * Shape::kTileSums;

  const SixteenPlan& plan;
  const SixteenPlace& place;
  const RowsOf<Shape> rows;
  float* memory;
  int first, tall;  // tiles of this pass

  // [tile][row of the weight][row of x] of a warp; `row`: of the lane.
  __device__ __forceinline__ void leave(
      int warp, int lane, int row, const EightSums<Shape::kEights> (&sums)[Shape::kTall]) const {
    float* const to = memory + warp * kWarp + row * Shape::kSumRow + (lane & 3) * 2;
#pragma unroll
    for (int tile = 0; tile < Shape::kTall; tile++) {
#pragma unroll
      for (int i = 0; i < Shape::kEights * 2; i++) {
        const float* const of = sums[tile].of[i / 2] + i % 2 * 2;
        float* const there = to + tile * Shape::kTileSums + i % 2 * 8 * Shape::kSumRow + i / 2 * 8;
        *reinterpret_cast<float2*>(there) = {of[0], of[1]};
      }
    }
  }

  // Of all warps, of four number i: row of the pass i % kRows, rows of x from i / kRows * 4.
  __device__ __forceinline__ float4 of_warps(int i) const {
    const int row = i % Shape::kRows, four = i / Shape::kRows;
    const float* const from =
        memory + row / kSixteen * Shape::kTileSums + row % kSixteen * Shape::kSumRow + four * 4;
    float4 sum{};
#pragma unroll
    for (int warp = 0; warp < kColumnWarps; warp++) {
      sum = sum_of(sum, *reinterpret_cast<const float4*>(from + warp * kWarp));
    }
    return sum;
  }

  template <class T>
  __device__ __forceinline__ void store(int i, const float4& four) const {
    const int row_of_pass = i % Shape::kRows, m = i / Shape::kRows * 4;
    const int64_t row = int64_t{first} * kSixteen + row_of_pass;
    if (row_of_pass >= tall * kSixteen || row >= plan.task.out_features) return;
    const float sums[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
      if (m + j < rows.left()) store_sum<T>(plan.task, rows.x() + m + j, row, sums[j]);
    }
  }
  __device__ __forceinline__ void store(int i, const float4& four) const {
    if (plan.task.dtype == Dtype::kBFloat16) return store<__nv_bfloat16>(i, four);
    store<__half>(i, four);
  }

  // By all threads, once all have left their sums.
  __device__ __forceinline__ void finish() const {
    const int thread = static_cast<int>(threadIdx.x);
    if (place.blocks == 1) {
      for (int i = thread; i < kFours; i += kSixteenThreads) store(i, of_warps(i));
      return;
    }
    auto* const mine = reinterpret_cast<float4*>(memory + kColumnWarps * kWarp);
    for (int i = thread; i < kFours; i += kSixteenThreads) mine[i] = of_warps(i);
    sync_cluster();
    const int begin = place.rank * (kFours / 2), end = begin + kFours / 2;
    for (int i = begin + thread; i < end; i += kSixteenThreads) {
      store(i, sum_of(floats_of_block(mine + i, 0), floats_of_block(mine + i, 1)));
    }
    sync_cluster();
  }
};

}  // namespace phiquant::cuda
