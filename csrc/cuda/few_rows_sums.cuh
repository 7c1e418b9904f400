// From the sums of a warp to results. Tiles that several blocks share are added up by the warp that
// comes last, always in the same order; warps of a block do not wait for each other.
#pragma once

#include "few_rows_shape.cuh"
#include "sums.cuh"

namespace phiquant::cuda {

// A lane's sums of 16 rows of the weight, `eights` of 8 rows of x: rows of x are 2 t and 2 t + 1 of
// eight, rows of the weight `row` and `row + 8`.
template <int eights>
struct TileSums {
  float4 of[eights];
};

__device__ __forceinline__ void add(float4* sum, const float4& more) {
  sum->x += more.x;
  sum->y += more.y;
  sum->z += more.z;
  sum->w += more.w;
}

// `row`: of the weight.
template <int eights>
__device__ __forceinline__ void store_few(const FewPlan& plan, int64_t row,
                                          const TileSums<eights>& sums) {
#pragma unroll
  for (int i = 0; i < eights * 4; i++) {
    const int m = i / 4 * 8 + 2 * (static_cast<int>(threadIdx.x) & 3) + i % 2;
    const int64_t at = row + i % 4 / 2 * 8;
    if (m >= plan.task.m || at >= plan.task.out_features) continue;
    const float4& four = sums.of[i / 4];
    const float sum = i % 4 == 0 ? four.x : i % 4 == 1 ? four.y : i % 4 == 2 ? four.z : four.w;
    const float all = sum * __ldcg(plan.back + m);
    if (plan.task.dtype == Dtype::kBFloat16) {
      store_sum<__nv_bfloat16>(plan.task, m, at, all);
    } else {
      store_sum<__half>(plan.task, m, at, all);
    }
  }
}

// Where a block leaves its sums of 16 rows of a tile that it shares: it has at most one tile that
// it begins and one that it does not.
template <int eights>
__device__ __forceinline__ float4* left_sums(const FewPlan& plan, int block, int tile, int part) {
  const int begins = first_unit(plan, block) <= tile * plan.stages;
  return plan.partial + ((int64_t{block} * 2 + begins) * kCounters + part) * (eights * 32) +
         (threadIdx.x & 31);
}

// By a warp: sums of the units [first, last) along a tile, of its 16 rows number `part`.
template <int eights>
__device__ __forceinline__ void finish(const FewPlan& plan, int tile, int first, int last, int part,
                                       int row, const TileSums<eights>& sums) {
  const int64_t at = int64_t{tile} * kTileRows + row;
  if (first == 0 && last == plan.stages) return store_few(plan, at, sums);
  float4* const mine = left_sums<eights>(plan, static_cast<int>(blockIdx.x), tile, part);
#pragma unroll
  for (int i = 0; i < eights; i++) __stcg(mine + i * 32, sums.of[i]);
  const int from = block_of(plan, tile * plan.stages);
  const int to = block_of(plan, (tile + 1) * plan.stages - 1);
  __threadfence();
  __syncwarp();
  unsigned before = 0;
  if ((threadIdx.x & 31) == 0) before = atomicAdd(plan.arrived + tile * kCounters + part, 1);
  before = __shfl_sync(~0u, before, 0);
  if (before != static_cast<unsigned>(to - from)) return;
  __threadfence();
  TileSums<eights> all{};
  for (int block = from; block <= to; block++) {
    const float4* const left = left_sums<eights>(plan, block, tile, part);
#pragma unroll
    for (int i = 0; i < eights; i++) add(&all.of[i], __ldcg(left + i * 32));
  }
  store_few(plan, at, all);
}

}  // namespace phiquant::cuda
