// Products of many rows of x with a lossy weight, on Hopper: out[m, row] = x[m] . weight[row].
//
// The product is taken transposed: the tensor cores' first operand is the weight, decoded to
// registers by the warps that multiply, the second x, which copies bring to shared memory as it is.
// A block takes 128 rows of the weight and `wide` of x. Of its three warpgroups two multiply 64
// rows each, and decode 64 columns while the ones before are multiplied; one fills stages. A pair
// of blocks has the same rows of x; each copies half of them to both.
//
// Tensor cores take 4 x `wide` cycles a step, each warp of the two that share a scheduler issues
// 181 instructions (indices alone) or 313 (4 deviation bits).
#pragma once

#include "many_rows_consumer.cuh"
#include "many_rows_filler.cuh"

namespace phiquant::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Bends and barriers; by all threads of the cluster.
template <int deviation, int wide>
__device__ __forceinline__ void prepare(TileShared<deviation, wide>& shared) {
  if (threadIdx.x < kBendCount) {
    const int i = static_cast<int>(threadIdx.x);
    constexpr float kShrink = kPositionUnit<deviation> / 8;
    shared.bends[i] = {kDeviceLines.of[i] * kShrink,
                       kDeviceBends.of[i] * kShrink * kShrink * kShrink};
  }
  if (threadIdx.x == 0) {
    for (int i = 0; i < TileShared<deviation, wide>::kStages; i++) {
      init_barrier(shared_address(&shared.full[i]),
                   1 + kConsumers);  // the copier, makers of levels
      init_barrier(shared_address(&shared.empty[i]), kPair * kConsumers * 4);
    }
    publish_barriers();
  }
  cluster_sync();
}

// What the third warpgroup does.
template <class T, int deviation, int wide>
__device__ __forceinline__ void fill(const TileTask& task, const BlockPlace& place,
                                     const CUtensorMap* x, const CUtensorMap* index,
                                     const CUtensorMap* high, TileShared<deviation, wide>& shared,
                                     int helper, int lane) {
  if (helper < kConsumers) {
    LevelMaker<T, deviation, wide>{task, place, shared, helper * kConsumerRows + lane}.run();
  } else if (helper == kConsumers && lane == 0) {
    copy_stages<deviation, wide>(task, place, x, index, high, shared);
  }
  __syncwarp();
}

#endif

template <class T, int deviation, int wide>
__global__ void __launch_bounds__(kTileThreads, 1)
    multiply_tiles(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap index,
                   const __grid_constant__ CUtensorMap high,
                   const __grid_constant__ TileTask task) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t memory[];
  auto& shared = *reinterpret_cast<TileShared<deviation, wide>*>(memory);
  const BlockPlace place = BlockPlace::of(task, cluster_rank());
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x) & 31;
  prepare<deviation, wide>(shared);
  if (warp >= kConsumers * 4) {
    give_registers<56>();
    fill<T, deviation, wide>(task, place, &x, &index, &high, shared, warp - kConsumers * 4, lane);
  } else {
    take_registers<224>();
    Consumer<T, deviation, wide>(task, place, shared, warp, lane).run();
  }
  cluster_sync();  // a block's barriers outlive the last arrivals of the other
#endif
}

}  // namespace phiquant::cuda
