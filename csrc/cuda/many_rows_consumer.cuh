// Warpgroups that multiply 64 rows of the weight with the tile's rows of x, and store the results.
#pragma once

#include "many_rows_copier.cuh"
#include "many_rows_wgmma.cuh"

namespace phiquant::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Two results of 16 bits, as sums of a product are rounded.
template <class T>
__device__ __forceinline__ uint32_t rounded_sums(float low, float high) {
  if constexpr (__is_same(T, __half)) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
}

template <class T, int deviation, int wide>
struct Consumer {
  using Shared = TileShared<deviation, wide>;
  static constexpr int kSums = wide / 2;
  static constexpr int kProduct = product_of(wide);

  const TileTask& task;
  const BlockPlace& place;
  Shared& shared;
  int number, warp, lane;            // of the warpgroup, in it, in the warp
  Turn<Shared::kStages> ring, read;  // of x: multiplied next, released next
  Turn<Shared::kWeightStages> weights, weights_read;
  Copier<deviation, wide> copier;
  float sums[kSums];

  __device__ __forceinline__ Consumer(const TileTask& task, const BlockPlace& place,
                                      const CUtensorMap* x, Shared& shared, int warp, int lane)
      : task(task),
        place(place),
        shared(shared),
        number(warp / 4),
        warp(warp & 3),
        lane(lane),
        copier(task, place, x, shared, lane) {}

  // Whether this warp has x copied.
  __device__ __forceinline__ bool copies() const { return number == 0 && warp == 0; }

  __device__ __forceinline__ void start_products(bool first) {
    wait_for(shared_address(&shared.full[ring.stage]), ring.parity);
    wait_for(shared_address(&shared.weights_full[weights.stage]), weights.parity);
    const uint64_t rows = describe_rows(shared_address(shared.x[ring.stage]));
    const uint64_t of = describe_rows(shared_address(shared.weights[weights.stage]) +
                                      number * (kConsumerRows * 128));
    begin_products();
#pragma unroll
    for (int i = 0; i < kStepColumns / 16; i++) {
#pragma unroll
      for (int at = 0; at < wide; at += kProduct) {
        WideProduct<T, kProduct>::add(reinterpret_cast<float (&)[kProduct / 2]>(sums[at / 2]),
                                      of + i * kDescribedStep,
                                      rows + i * kDescribedStep + at * (128 >> 4), !first || i > 0);
      }
    }
    commit_products();
    ring.advance();
    weights.advance();
  }

  // The oldest stages, to whoever fills them: x in both blocks of the pair.
  __device__ __forceinline__ void release() {
    __syncwarp();
    if (lane < kPair) {
      arrive_at(shared_address(&shared.empty[read.stage]), static_cast<uint32_t>(lane));
    } else if (lane == kPair) {
      arrive(shared_address(&shared.weights_empty[weights_read.stage]));
    }
    read.advance();
    weights_read.advance();
  }

  // Sums of some steps of a tile: one is multiplied while the next is asked for. x is copied to
  // the stage of two steps ago, which the other block has released by then, too.
  __device__ __forceinline__ void multiply(int steps) {
    start_products(true);
    for (int step = 1; step < steps; step++) {
      start_products(false);
      if (copies()) copier.copy();
      wait_for_products<1>();
      release();
    }
    wait_for_products<0>();
    settle(sums);
    release();
    if (copies()) copier.copy();
  }

  // Sums of 64 rows of x, from `from` on, as rows of 64 results in shared memory.
  __device__ __forceinline__ void gather(int from, float upper, float lower) const {
    const uint32_t out = shared_address(shared.out[number]);
    const int matrix = lane >> 3, in_eight = lane & 7;
#pragma unroll
    for (int i = 0; i < kOutRows; i += 16) {
      uint32_t pairs[4];
#pragma unroll
      for (int eight = 0; eight < 2; eight++) {
        const float* const four = sums + (from + i + 8 * eight) / 2;
        pairs[2 * eight] = rounded_sums<T>(four[0] + upper, four[1] + upper);
        pairs[2 * eight + 1] = rounded_sums<T>(four[2] + lower, four[3] + lower);
      }
      const int row = i + (matrix >> 1) * 8 + in_eight;
      const int chunk = (2 * warp + (matrix & 1)) ^ in_eight;
      store_transposed(out + static_cast<uint32_t>(row * 128 + chunk * 16), pairs[0], pairs[1],
                       pairs[2], pairs[3]);
    }
  }

  // Those rows to the result: 8 threads a row.
  __device__ __forceinline__ void store(int64_t m, int64_t row) const {
    const int thread = warp * 32 + lane;
#pragma unroll
    for (int i = 0; i < kOutRows / 16; i++) {
      const int in_out = i * 16 + thread / 8, chunk = thread & 7;
      const int64_t at_m = m + in_out, at = row + chunk * 8;
      if (at_m >= task.m || at >= task.out_features) continue;
      const uint4 eight = *reinterpret_cast<const uint4*>(shared.out[number] + in_out * 128 +
                                                          ((chunk ^ (in_out & 7)) * 16));
      uint16_t* const to = static_cast<uint16_t*>(task.out) + at_m * task.out_features + at;
      if (task.aligned) {
        *reinterpret_cast<uint4*>(to) = eight;
      } else {
        const auto* const each = reinterpret_cast<const uint16_t*>(&eight);
#pragma unroll
        for (int j = 0; j < 8; j++) {
          if (at + j < task.out_features) to[j] = each[j];
        }
      }
    }
  }

  __device__ __forceinline__ float bias_of(int64_t row) const {
    if (task.bias == nullptr || row >= task.out_features) return 0;
    return widened(static_cast<const T*>(task.bias)[row]);
  }

  __device__ __forceinline__ void finish(int tile) const {
    const int64_t row = place.weight_row(task, tile) + number * kConsumerRows;
    const int64_t mine = row + warp * 16 + (lane >> 2), m = place.x_row(task, tile, wide);
    const float upper_bias = bias_of(mine), lower_bias = bias_of(mine + 8);
#pragma unroll
    for (int at = 0; at < wide; at += kOutRows) {
      gather(at, upper_bias, lower_bias);
      warpgroup_sync(number);
      store(m + at, row);
      warpgroup_sync(number);
    }
  }

  // Where a pair leaves the sums of a tile that it shares: it has at most one tile that it begins,
  // and one that it does not.
  __device__ __forceinline__ float4* left_sums(int pair, int tile) const {
    const int begins = task.first_unit(pair) <= tile * task.steps;
    const int64_t slot = ((int64_t{pair} * kPair + place.rank) * 2 + begins) * kConsumers + number;
    return task.partial + slot * (kSums / 4 * 128) + warp * 32 + lane;
  }

  __device__ __forceinline__ void leave(int tile) const {
    float4* const to = left_sums(place.pair, tile);
#pragma unroll
    for (int i = 0; i < kSums; i += 4) {
      __stcg(to + i / 4 * 128, make_float4(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]));
    }
  }

  __device__ __forceinline__ void add(const float4* left) {
#pragma unroll
    for (int i = 0; i < kSums; i += 4) {
      const float4 four = __ldcg(left + i / 4 * 128);
      sums[i] += four.x;
      sums[i + 1] += four.y;
      sums[i + 2] += four.z;
      sums[i + 3] += four.w;
    }
  }

  // How many of the tile's pairs have left their sums, for all of the warpgroup; what they left can
  // be read then. `add`: 1 once this one has left its own, which are not counted.
  __device__ __forceinline__ unsigned arrived(int tile, unsigned add) const {
    __threadfence();
    warpgroup_sync(number);
    if (warp == 0 && lane == 0) {
      shared.before[number] =
          atomicAdd(task.arrived + (tile * kPair + place.rank) * kConsumers + number, add);
    }
    warpgroup_sync(number);
    __threadfence();
    return shared.before[number];
  }

  // Whether all sums of the tile are here now: whoever comes last adds up, in the order of the
  // columns; two sums are the same in any order.
  __device__ __forceinline__ bool share(int tile) {
    const int from = task.pair_of(tile * task.steps),
              to = task.pair_of((tile + 1) * task.steps - 1);
    const auto others = static_cast<unsigned>(to - from);
    if (others > 1 || arrived(tile, 0) != 1) {
      leave(tile);
      if (arrived(tile, 1) != others) return false;
    }
    if (others == 1) {
      add(left_sums(from + to - place.pair, tile));
      return true;
    }
#pragma unroll
    for (int i = 0; i < kSums; i++) sums[i] = 0;
    for (int pair = from; pair <= to; pair++) add(left_sums(pair, tile));
    return true;
  }

  __device__ __forceinline__ void run() {
    for (int i = 1; i < Shared::kStages && copies(); i++) copier.copy();
    Segment part;
    for (int unit = place.first; unit < place.last; unit += part.end - part.begin) {
      part = place.segment(task, unit);
      multiply(part.end - part.begin);
      if (part.end - part.begin == task.steps || share(part.tile)) finish(part.tile);
    }
  }
};

#endif

}  // namespace phiquant::cuda
