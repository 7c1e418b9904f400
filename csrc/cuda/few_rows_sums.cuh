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

// What a lane's rows of x are to be multiplied with again.
template <int eights>
struct Backs {
  float of[eights][2];

  __device__ __forceinline__ explicit Backs(const FewPlan& plan) {
#pragma unroll
    for (int i = 0; i < eights * 2; i++) {
      of[i / 2][i % 2] = __ldcg(plan.back + i / 2 * 8 + 2 * (threadIdx.x & 3) + i % 2);
    }
  }
};

// `row`: of the weight.
template <class T, int eights>
__device__ __forceinline__ void store_few(const FewPlan& plan, int64_t row,
                                          const Backs<eights>& backs,
                                          const TileSums<eights>& sums) {
#pragma unroll
  for (int i = 0; i < eights * 4; i++) {
    const int m = i / 4 * 8 + 2 * (static_cast<int>(threadIdx.x) & 3) + i % 2;
    const int64_t at = row + i % 4 / 2 * 8;
    if (m >= plan.task.m || at >= plan.task.out_features) continue;
    const float4& four = sums.of[i / 4];
    const float sum = i % 4 == 0 ? four.x : i % 4 == 1 ? four.y : i % 4 == 2 ? four.z : four.w;
    store_sum<T>(plan.task, m, at, sum * backs.of[i / 4][i % 2]);
  }
}
template <int eights>
__device__ __forceinline__ void store_few(const FewPlan& plan, int64_t row,
                                          const Backs<eights>& backs,
                                          const TileSums<eights>& sums) {
  if (plan.task.dtype == Dtype::kBFloat16) {
    store_few<__nv_bfloat16>(plan, row, backs, sums);
  } else {
    store_few<__half>(plan, row, backs, sums);
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

// 16 rows of a tile, as a warp has them.
struct Part {
  int tile, number;
  int64_t row;   // of the weight, of this lane
  int from, to;  // the blocks that share the tile

  __device__ __forceinline__ Part(const FewPlan& plan, int tile, int number, int row)
      : tile(tile),
        number(number),
        row(int64_t{tile} * kUnitRows + row),
        from(block_of(plan, tile * plan.stages)),
        to(block_of(plan, (tile + 1) * plan.stages - 1)) {}

  __device__ __forceinline__ unsigned* arrived(const FewPlan& plan) const {
    return plan.arrived + tile * kCounters + number;
  }
};

// Adds up what the part's blocks left, in order; this block's sums are `mine` if not left.
template <int eights>
__device__ __forceinline__ void add_left_sums(const FewPlan& plan, const Part& part,
                                              const TileSums<eights>* mine) {
  const Backs<eights> backs(plan);
  TileSums<eights> all{};
  for (int block = part.from; block <= part.to; block++) {
    const bool here = mine != nullptr && block == static_cast<int>(blockIdx.x);
    const float4* const left = left_sums<eights>(plan, block, part.tile, part.number);
#pragma unroll
    for (int i = 0; i < eights; i++) add(&all.of[i], here ? mine->of[i] : __ldcg(left + i * 32));
  }
  store_few(plan, part.row, backs, all);
}

template <int eights>
__device__ __forceinline__ void leave(const FewPlan& plan, const Part& part,
                                      const TileSums<eights>& sums) {
  float4* const mine =
      left_sums<eights>(plan, static_cast<int>(blockIdx.x), part.tile, part.number);
#pragma unroll
  for (int i = 0; i < eights; i++) __stcg(mine + i * 32, sums.of[i]);
}

// After leave: whoever comes last adds up.
template <int eights>
__device__ __forceinline__ void arrive(const FewPlan& plan, const Part& part) {
  __threadfence();
  __syncwarp();
  int before = 0;
  if ((threadIdx.x & 31) == 0) before = static_cast<int>(atomicAdd(part.arrived(plan), 1));
  before = __shfl_sync(~0u, before, 0);
  if (before != part.to - part.from) return;
  __threadfence();
  add_left_sums<eights>(plan, part, nullptr);
}

// The last thing that a warp does: nothing is left if all others have come already.
template <int eights>
__device__ __forceinline__ void finish(const FewPlan& plan, const Part& part,
                                       const TileSums<eights>& sums) {
  int others;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];"
               : "=r"(others)
               : "l"(part.arrived(plan))
               : "memory");
  if (__all_sync(~0u, others == part.to - part.from)) {
    return add_left_sums<eights>(plan, part, &sums);
  }
  leave(plan, part, sums);
  arrive<eights>(plan, part);
}

}  // namespace phiquant::cuda
