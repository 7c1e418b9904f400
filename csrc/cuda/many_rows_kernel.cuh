// Products of many rows of x with a lossy weight, on Hopper: out[m, row] = x[m] . weight[row].
//
// The product is taken transposed: the tensor cores' first operand is the weight, the second x,
// both in shared memory. A block takes 128 rows of the weight and `wide` of x. Of its four
// warpgroups two decode 64 columns in turn, two multiply 64 rows of the weight each; one of their
// warps has x copied. A pair of blocks has the same rows of x; each copies half of them to both.
//
// Of 256 rows of x, a step is 1024 cycles of the tensor cores and 152 kB of shared memory, 1188
// cycles. Decoding is some 350 instructions a warp and step of indices, 540 with 4 deviation bits.
#pragma once

#include "many_rows_consumer.cuh"
#include "many_rows_decoder.cuh"

namespace phiquant::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

template <int deviation, int wide>
__device__ __forceinline__ void init_barriers(TileShared<deviation, wide>& shared) {
  using Shared = TileShared<deviation, wide>;
  for (int i = 0; i < Shared::kStages; i++) {
    init_barrier(shared_address(&shared.full[i]), 1);
    init_barrier(shared_address(&shared.empty[i]), kPair * kConsumers * 4);
  }
  for (int i = 0; i < Shared::kWeightStages; i++) {
    init_barrier(shared_address(&shared.weights_full[i]), 4);
    init_barrier(shared_address(&shared.weights_empty[i]), kConsumers * 4);
  }
  for (auto& slots : shared.codes_full) {
    for (auto& slot : slots) init_barrier(shared_address(&slot), 1);
  }
  publish_barriers();
}

// Registers of a thread once warps have traded them: what sums leave to the warps that decode.
constexpr int consumer_registers(int wide) { return wide > 128 ? 176 : 152; }
constexpr int decoder_registers(int wide) { return 256 - consumer_registers(wide); }

// Bends and barriers; by all threads of the cluster.
template <int deviation, int wide>
__device__ __forceinline__ void prepare(TileShared<deviation, wide>& shared) {
  if (threadIdx.x < kBendCount) {
    const int i = static_cast<int>(threadIdx.x);
    constexpr float kShrink = kPositionUnit<deviation> / 8;
    shared.bends[i] = {kDeviceLines.of[i] * kShrink,
                       kDeviceBends.of[i] * kShrink * kShrink * kShrink};
  }
  if (threadIdx.x == 32) init_barriers(shared);
  __syncthreads();
  cluster_sync_published();
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
  const int lane = lane_of_thread();
  prepare<deviation, wide>(shared);
  if (warp < kConsumers * 4) {
    take_registers<consumer_registers(wide)>();
    Consumer<T, deviation, wide>(task, place, &x, shared, warp, lane).run();
  } else {
    give_registers<decoder_registers(wide)>();
    const CodeMaps maps{&index, &high};
    Decoder<T, deviation, wide>(task, place, maps, shared, warp - kConsumers * 4, lane).run();
  }
  __syncwarp();
  cluster_sync();  // a block's barriers outlive the last arrivals of the other
#endif
}

}  // namespace phiquant::cuda
