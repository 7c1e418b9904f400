// Products of up to 16 rows of x, on Hopper and later. One thread has codes and x copied to rings in
// shared memory; the other warps multiply, each all tiles of its columns, and sums are added up at
// the end.
//
// Until the kernel ahead has ended nothing is read but first codes, to the L2 cache, which is never
// stale.
#pragma once

#include "overlap.cuh"
#include "registers.cuh"
#include "sixteen_ring.cuh"
#include "sixteen_scales.cuh"
#include "sixteen_sums.cuh"

namespace phiquant::cuda {

struct SixteenShared {
  SixteenBarriers barriers;
  FittedBend bends[kBendCount];
};

template <class Shape>
struct SixteenWorker {
  static constexpr int kEights = Shape::kEights, kDeviation = Shape::kDeviation;

  const SixteenPlan& plan;
  const SixteenPlace& place;
  SixteenShared& shared;
  int lane, warp, row;
  uint32_t units, boxes, words, factors;  // in shared memory: of the block; the last, of the warp
  uint32_t index, quarters, x;            // of the lane, from where a unit or a box begins
  RingTurn unit, box;
  EightSums<kEights> sums[Shape::kTall];

  // Lanes of half a warp have rows that meet each bank once.
  __device__ __forceinline__ SixteenWorker(const SixteenPlan& plan, const SixteenPlace& place,
                                           SixteenShared& shared, const SixteenRoom<Shape>& room,
                                           uint32_t memory)
      : plan(plan),
        place(place),
        shared(shared),
        lane(static_cast<int>(threadIdx.x) & 31),
        warp(static_cast<int>(threadIdx.x) / 32),
        row((lane >> 2 & 3) * 2 + (lane >> 4)),
        units(memory + room.units),
        boxes(memory + room.boxes),
        words(memory + room.words),
        factors(memory + room.factors + warp * Shape::kFactorBytes),
        unit{warp / kQuad},
        box{warp / kQuad} {
    const int t = lane & 3, in_box = warp % kQuad;
    index = static_cast<uint32_t>(row * 128 + ((in_box * 2 + t / 2) ^ row) * 16 + t % 2 * 8);
    quarters = static_cast<uint32_t>(row * 64 + (in_box ^ row >> 1) * 16 + t * 4);
    x = in_box * Shape::kXBytes + XColumn<kEights>::place_of(lane);
  }

  // What scales the rows of a column, for all lanes.
  __device__ __forceinline__ void make_factors(int column) const {
    const uint32_t bends = shared_address(shared.bends);
#pragma unroll
    for (int i = 0; i < Shape::kRows; i += 32) {
      if (i + 32 > Shape::kRows && i + lane >= Shape::kRows) break;
      const uint32_t word = half_at(words + (column * Shape::kRows + i + lane) * 2);
      put_pair(factors + (i + lane) * 8, factors_of(word, bends));
    }
    __syncwarp();
  }

  __device__ __forceinline__ XColumn<kEights> take_x() const {
    shared.barriers.boxes.full[box.at].wait(box.parity);
    XColumn<kEights> column{boxes + box.at * Shape::kBoxBytes + x, {}};
    column.prepare(lane, plan.task.dtype == Dtype::kBFloat16);
    return column;
  }
  // Copies come to what has been rewritten.
  __device__ __forceinline__ void leave_x() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncwarp();
    if (lane == 0) shared.barriers.boxes.empty[box.at].arrive();
    box.advance(kQuads, plan.boxes);
  }

  // Row `row`, or the eighth after it, of tile i of a unit, which is the pass's `tile`.
  template <int i, int tile, int below>
  __device__ __forceinline__ ColumnCodes codes(uint32_t from) const {
    constexpr int kRow = i * kSixteen + below * 8;
    ColumnCodes found{};
    found.index = pair_at<kRow * 128>(from + index);
    if constexpr (kDeviation == 4) {
      found.high = pair_at<Shape::kIndexBytes + kRow * 128>(from + index);
    }
    if constexpr (kDeviation == 2) {
      found.high.x = word_at<Shape::kIndexBytes + kRow * 64>(from + quarters);
      found.high.y = found.high.x >> 16;
    }
    found.factors = pair_at<(tile * kSixteen + below * 8) * 8>(factors + row * 8);
    return found;
  }

  template <int half, int i = 0>
  __device__ __forceinline__ void multiply(uint32_t from, const XColumn<kEights>& x) {
    constexpr int tile = half * Shape::kHalf + i;
    if constexpr (i < Shape::kHalf && tile < Shape::kTall) {
      multiply_column<kDeviation>(codes<i, tile, 0>(from), codes<i, tile, 1>(from), x, &sums[tile]);
      multiply<half, i + 1>(from, x);
    }
  }

  // The next unit, of which a column beyond the last one has nothing.
  template <int half>
  __device__ __forceinline__ void take_unit(bool some, const XColumn<kEights>& x) {
    shared.barriers.units.full[unit.at].wait(unit.parity);
    if (some) multiply<half>(units + unit.at * Shape::kUnitBytes, x);
    __syncwarp();
    if (lane == 0) shared.barriers.units.empty[unit.at].arrive();
    unit.advance(kQuads, plan.units);
  }

  // A pass.
  __device__ __forceinline__ void run() {
#pragma unroll
    for (int i = 0; i < Shape::kTall; i++) sums[i] = {};
    const int steps = place.steps();
    for (int step = 0, column = warp; step < steps; step++, column += kColumnWarps) {
      const bool some = column < place.columns;
      if (some) make_factors(column);
      const XColumn<kEights> x = take_x();
      take_unit<0>(some, x);
      if constexpr (Shape::kHalves > 1) take_unit<1>(some, x);
      leave_x();
    }
  }
};

// Barriers of threads that multiply; and of all, once first scale words have been asked for.
__device__ __forceinline__ void sync_multiplying() {
  asm volatile("bar.sync 1, %0;" ::"n"(kMultiplying) : "memory");
}
__device__ __forceinline__ void say_asked() {
  asm volatile("bar.arrive 2, %0;" ::"n"(kSixteenThreads) : "memory");
}
__device__ __forceinline__ void wait_until_asked() {
  asm volatile("bar.sync 2, %0;" ::"n"(kSixteenThreads) : "memory");
}

// All passes of a block, by the warps that multiply.
template <class Shape>
__device__ __forceinline__ void multiply_passes(const SixteenPlan& plan, const SixteenPlace& place,
                                                const SixteenRoom<Shape>& room,
                                                SixteenShared& shared, uint8_t* memory) {
  SixteenWorker<Shape> worker(plan, place, shared, room, shared_address(memory));
  auto* const words = reinterpret_cast<uint16_t*>(memory + room.words);
  for (int first = place.first; first < place.last; first += Shape::kTall) {
    const int tall = min(Shape::kTall, place.last - first);
    const SixteenSums<Shape> sums{plan, place, reinterpret_cast<float*>(memory), first, tall};
    WordLoader<Shape>{plan, place, words, first, tall, worker.warp, worker.lane}.run(say_asked);
    sync_multiplying();
    worker.run();
    sync_multiplying();
    sums.leave(worker.warp, worker.lane, worker.row, worker.sums);
    sync_multiplying();
    sums.finish();
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // copies come here next
    __syncthreads();
  }
}

// The same, by the other warps. Two boxes are asked for first: behind more, scale words would come
// microseconds later.
template <class Shape>
__device__ __forceinline__ void fill_passes(const SixteenPlan& plan, const SixteenPlace& place,
                                            const SixteenRoom<Shape>& room,
                                            const SixteenMaps& maps, SixteenShared& shared,
                                            uint8_t* memory) {
  constexpr int kEarly = 2;
  const bool fills = threadIdx.x == kMultiplying;
  RingFiller<Shape> filler{
      plan, place, maps, shared.barriers, memory + room.units, memory + room.boxes};
  for (int first = place.first; first < place.last; first += Shape::kTall) {
    if (fills) filler.begin(first, kEarly);
    __syncwarp();
    wait_until_asked();
    if (fills) filler.go_on(first, kEarly);
    __syncwarp();
    if (place.blocks > 1) {
      sync_cluster();
      sync_cluster();
    }
    __syncthreads();
  }
}

// A thread a row of the first pass: 128 bytes of codes in each of 16 columns.
__device__ __forceinline__ void fetch_first(const SixteenPlan& plan, const SixteenPlace& place) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t row = int64_t{place.first} * kSixteen + thread / 4;
  const int column = place.begin + thread % 4 * 4;
  if (row >= min(int64_t{place.last} * kSixteen, plan.task.out_features)) return;
  if (column >= place.begin + place.columns) return;
  fetch_to_l2(plan.task.planes.index + (row * plan.groups + column) * (kColumn / 2));
}

template <class Shape>
__global__ void __launch_bounds__(kSixteenThreads, 1)
    sixteen_rows(const __grid_constant__ SixteenPlan plan,
                 const __grid_constant__ SixteenMaps maps) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ uint8_t room[];
  __shared__ SixteenShared shared;
  uint8_t* const memory = room + (-shared_address(room) & 1023);  // as the copies' pattern wants it
  const int thread = static_cast<int>(threadIdx.x);
  const SixteenPlace place(plan);
  fetch_first(plan, place);
  if (thread < kBendCount) {
    FittedBend bend = fitted_bend_of(thread);
    bend.back *= power_of_two(plan.task.layout.exponent);
    shared.bends[thread] = bend;
  }
  if (thread == kMultiplying) {
    prefetch_map(maps.x);
    prefetch_map(maps.index[0]);
    if constexpr (Shape::kDeviation > 0) prefetch_map(maps.high[0]);
    shared.barriers.start(plan);
  }
  __syncthreads();
  wait_for_earlier_kernels();
  admit_next_kernel();
  const SixteenRoom<Shape> places(place.columns, plan.units, plan.boxes);
  if (thread < kMultiplying) {
    take_registers<kMultiplyingRegisters>();
    multiply_passes<Shape>(plan, place, places, shared, memory);
  } else {
    give_registers<kFillingRegisters>();
    fill_passes<Shape>(plan, place, places, maps, shared, memory);
  }
#endif
}

}  // namespace phiquant::cuda
