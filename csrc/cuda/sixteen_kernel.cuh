// Products of up to 16 rows of x, on Hopper and later. Each warp multiplies all tiles of its
// columns; four warps share a ring of codes in shared memory, and a box of x, which one of their
// threads has copied; sums are added up at the end.
//
// Until the kernel ahead has ended nothing is read but first codes, to the L2 cache, which is never
// stale.
#pragma once

#include "overlap.cuh"
#include "sixteen_sums.cuh"
#include "sixteen_worker.cuh"

namespace phiquant::cuda {

// All passes of a block, for rows of x that are multiplied together. Scale words are asked for
// first: behind a ring of codes they would come microseconds later.
template <class Shape>
__device__ __forceinline__ void multiply_passes(const SixteenPlan& plan, const SixteenPlace& place,
                                                const SixteenRoom<Shape>& room, uint8_t* memory,
                                                SixteenWorker<Shape>& worker) {
  const RowsOf<Shape> rows = worker.filler.rows;
  auto* const words = reinterpret_cast<uint16_t*>(memory + room.words);
  for (int first = place.first; first < place.last; first += Shape::kTall) {
    const int tall = min(Shape::kTall, place.last - first);
    const SixteenSums<Shape> sums{plan, place, rows, reinterpret_cast<float*>(memory), first, tall};
    const WordLoader<Shape> loader{plan, place, rows, words, first, tall, worker.warp, worker.lane};
    typename WordLoader<Shape>::Items found;
    loader.ask(worker.warp, found);
    worker.begin(first);
    loader.run(found);
    __syncthreads();
    worker.run(first);
    __syncthreads();
    sums.leave(worker.warp, worker.lane, worker.row, worker.sums);
    __syncthreads();
    sums.finish();
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // copies come here next
    __syncthreads();
  }
}

// All rows of a block.
template <class Shape>
__device__ __forceinline__ void multiply_all(const SixteenPlan& plan, const SixteenPlace& place,
                                             const SixteenMaps& maps, SixteenShared& shared,
                                             uint8_t* memory) {
  constexpr int kTogether = 8 * Shape::kEights;
  const SixteenRoom<Shape> room(place.columns, plan.units);
  SixteenWorker<Shape> worker(plan, place, maps, shared, room, shared_address(memory));
  while (true) {
    multiply_passes<Shape>(plan, place, room, memory, worker);
    if (!Shape::kExperts || shared.rows.left <= kTogether) return;
    __syncthreads();
    if (threadIdx.x == 0) shared.rows.leave_behind(kTogether);
    __syncthreads();
  }
}

// Scale words of the first pass, and the first step's indices: four threads a row.
__device__ __forceinline__ void fetch_first(const SixteenPlan& plan, const SixteenPlace& place) {
  constexpr int kWordsOfLine = 64, kThreads = 4;
  const int thread = static_cast<int>(threadIdx.x), part = thread % kThreads;
  const int64_t row = int64_t{place.first} * kSixteen + thread / kThreads;
  if (row >= min(int64_t{place.last} * kSixteen, plan.task.out_features)) return;
  const int64_t group = row * plan.groups + place.begin;
#pragma unroll 1
  for (int i = part * kWordsOfLine; i < place.columns; i += kThreads * kWordsOfLine) {
    fetch_to_l2(plan.task.planes.scale + group + i);
  }
  if (part * kQuad >= place.columns) return;
  fetch_to_l2(plan.task.planes.index + (group + part * kQuad) * (kColumn / 2));
}

template <class Shape>
__global__ void __launch_bounds__(kSixteenThreads, 1)
    sixteen_rows(const __grid_constant__ SixteenPlans plans,
                 const __grid_constant__ SixteenMapsOf all_maps) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ uint8_t room[];
  __shared__ SixteenShared shared;
  uint8_t* const memory = room + (-shared_address(room) & 1023);  // as the copies' pattern wants it
  const int thread = static_cast<int>(threadIdx.x);
  const SixteenPlace place(plans);
  const SixteenPlan& plan = plans.of[place.weight];
  const SixteenMaps& maps = all_maps.of[place.weight];
  if constexpr (!Shape::kExperts) fetch_first(plan, place);
  if (thread < kBendCount) {
    FittedBend bend = fitted_bend_of(thread);
    bend.back *= power_of_two(plan.task.layout.exponent);
    shared.bends[thread] = bend;
  }
  if (thread == kSixteenThreads - 1) {
    prefetch_map(maps.x);
    prefetch_map(maps.index[0]);
    if constexpr (Shape::kDeviation > 0) prefetch_map(maps.high[0]);
  }
  if (thread % 32 == 0) {
    shared.quads[thread / (32 * kQuad)].start(thread / 32 % kQuad, plan.units);
  }
  __syncthreads();
  wait_for_earlier_kernels();
  admit_next_kernel();
  if constexpr (Shape::kExperts) {
    if (shared.finder.find(plan, place.expert, &shared.rows)) {
      multiply_all<Shape>(plan, place, maps, shared, memory);
    }
    clear_rest(plan);
  } else {
    multiply_all<Shape>(plan, place, maps, shared, memory);
  }
#endif
}

}  // namespace phiquant::cuda
