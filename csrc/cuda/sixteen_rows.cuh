// Which rows of x a block of the kernel of up to 16 rows multiplies, and with which rows of the
// weight: all there are, or those of an expert, which only the device knows.
#pragma once

#include "sixteen.cuh"

namespace phiquant::cuda {

// In shared memory, seen by all threads after a barrier.
struct SixteenRows {
  int weight;  // the first row
  int x, left;

  __device__ __forceinline__ void leave_behind(int count) {
    x += count;
    left -= count;
  }
};

// Those rows; without experts all there are, which the compiler knows to begin with the first.
template <class Shape>
struct RowsOf {
  const SixteenPlan& plan;
  const SixteenRows& found;

  __device__ __forceinline__ int weight() const { return Shape::kExperts ? found.weight : 0; }
  __device__ __forceinline__ int x() const { return Shape::kExperts ? found.x : 0; }
  __device__ __forceinline__ int left() const {
    return Shape::kExperts ? found.left : static_cast<int>(plan.task.m);
  }
};

// The experts that have rows, in order.
struct ExpertFinder {
  int counts[kColumnWarps];  // of warps

  // By all threads: rows of x of the expert that has rows and before which `number` others have;
  // false if there is none. What `ends` say is taken within all rows. A barrier has to follow.
  __device__ __forceinline__ bool find(const SixteenPlan& plan, int number, SixteenRows* rows) {
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
    int before = 0;
    for (int first = 0; first < plan.experts; first += kSixteenThreads) {
      const int expert = first + thread;
      int start = 0, stop = 0;
      if (expert < plan.experts) {
        start = static_cast<int>(plan.ends.at(expert - 1, plan.task.m));
        stop = static_cast<int>(plan.ends.at(expert, plan.task.m));
      }
      const uint32_t some = __ballot_sync(~0u, stop > start);
      if (lane == 0) counts[thread / 32] = __popc(some);
      __syncthreads();
      int rank = before + __popc(some & ((1u << lane) - 1));
      for (int warp = 0; warp < kColumnWarps; warp++) {
        if (warp < thread / 32) rank += counts[warp];
        before += counts[warp];
      }
      if (stop > start && rank == number) {
        *rows = {expert * static_cast<int>(plan.task.out_features), start, stop - start};
      }
      __syncthreads();
      if (before > number) return true;
    }
    return false;
  }
};

// Results of rows that no expert has, which are the last ones: zero, by all blocks.
__device__ __forceinline__ void clear_rest(const SixteenPlan& plan) {
  const int64_t width = plan.task.out_features, all = plan.task.m * width;
  const int64_t begin = plan.ends.at(plan.experts - 1, plan.task.m) * width;
  const int64_t stride = int64_t{gridDim.x} * kSixteenThreads;
  auto* const out = static_cast<uint16_t*>(plan.task.out);
  for (int64_t i = begin + int64_t{blockIdx.x} * kSixteenThreads + threadIdx.x; i < all;
       i += stride) {
    out[i] = 0;
  }
}

}  // namespace phiquant::cuda
