// Products of 5 to 16 rows of x with indices alone, on Hopper and later. One thread has codes and
// x copied to a ring in shared memory, x as it is; what scales weights is made once, before; the
// other warps multiply, each a tile and its part of the columns, and sums are added up at the end.
//
// Until the kernel ahead has ended nothing is read but first codes, to the L2 cache, which is never
// stale.
#pragma once

#include "overlap.cuh"
#include "sixteen_ring.cuh"
#include "sixteen_scales.cuh"
#include "sixteen_sums.cuh"

namespace phiquant::cuda {

struct SixteenShared {
  UnitBarriers barriers;
  ColumnBend bends[kBendCount];
};

template <class T, int eights, class Shape>
struct SixteenWorker {
  using Unit = SixteenUnit<eights>;

  const SixteenPlan& plan;
  const SixteenPlace& place;
  UnitBarriers& barriers;
  uint32_t ring;  // in shared memory
  int lane, first_column;
  UnitReader<eights, Shape> reader;
  uint32_t scales;  // of the lane's tile, row and first column
  UnitTurn turn;
  EightSums<eights> sums;

  __device__ __forceinline__ SixteenWorker(const SixteenPlan& plan, const SixteenPlace& place,
                                           UnitBarriers& barriers, uint32_t memory, uint32_t ring,
                                           int warp, int lane)
      : plan(plan),
        place(place),
        barriers(barriers),
        ring(ring),
        lane(lane),
        first_column(warp % Shape::kParts * Shape::kEach),
        reader(plan, warp / Shape::kParts, warp % Shape::kParts, lane),
        scales(memory +
               ((warp / Shape::kParts * place.columns + first_column) * kSixteen + reader.row) *
                   kScaleBytes) {}

  template <int i>
  __device__ __forceinline__ void multiply(uint32_t unit, uint32_t its_scales) {
    const ColumnCodes codes = reader.template codes<i>(unit, its_scales);
    multiply_column<T>(codes, reader.template x_column<i>(unit), &sums);
  }

  // A pass; the block's last columns may be fewer.
  __device__ __forceinline__ void run() {
    const uint32_t bytes = Unit::bytes(plan.tall, Shape::kColumns);
    uint32_t its_scales = scales, unit = ring + turn.at * bytes;
    int left = place.columns - first_column;
    sums = {};
    for (int units = place.units(Shape::kColumns); units > 0; units--) {
      barriers.full[turn.at].wait(turn.parity);
      if (left > 0) multiply<0>(unit, its_scales);
      if (Shape::kEach > 1 && left > 1) multiply<Shape::kEach - 1>(unit, its_scales);
      __syncwarp();
      if (lane == 0) barriers.empty[turn.at].arrive();
      turn.advance(plan.units);
      unit = turn.at == 0 ? ring : unit + bytes;
      its_scales += Shape::kColumns * kSixteen * kScaleBytes;
      left -= Shape::kColumns;
    }
  }
};

// All passes of a block: warps that have a tile, those that have none, and the one that copies. It
// asks for two units first: behind more, scale words would come microseconds later.
template <class T, int eights, class Shape>
__device__ __forceinline__ void multiply_passes(const SixteenPlan& plan, const SixteenPlace& place,
                                                const SixteenMaps& maps, SixteenShared& shared,
                                                uint8_t* memory) {
  constexpr int kEarly = 2;
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) / 32;
  const int units = place.units(Shape::kColumns), early = min(kEarly, units);
  const bool has_tile = warp < plan.tall * Shape::kParts;
  uint8_t* const ring = memory + SixteenRoom<eights>::scales(plan.tall, place.columns);
  const uint32_t address = shared_address(memory);
  UnitFiller<eights, Shape> filler{plan, place, maps, shared.barriers, ring, {}};
  SixteenWorker<T, eights, Shape> worker(plan, place, shared.barriers, address,
                                         shared_address(ring), warp, lane);
  for (int first = place.first; first < place.last; first += plan.tall) {
    const int tall = min(plan.tall, place.last - first);
    if (warp == kColumnWarps) {
      if (lane == 0) filler.run(first, 0, early);
      __syncthreads();
      if (lane == 0) filler.run(first, early, units);
    } else {
      ScaleMaker{plan, place, shared.bends, address, first, tall, warp, lane}.run();
      __syncthreads();
      if (has_tile) worker.run();
    }
    __syncthreads();
    const SixteenSums<T, eights, Shape> sums{plan, place, reinterpret_cast<float*>(memory), first,
                                             tall};
    if (has_tile) sums.leave(warp, lane, worker.reader.row, worker.sums);
    __syncthreads();
    sums.finish();
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // copies come here next
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

template <class T, int eights, int parts>
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
    shared.bends[thread] = ColumnBend::of(thread, power_of_two(plan.task.layout.exponent));
  }
  if (thread == kColumnWarps * 32) {
    prefetch_map(maps.x);
    prefetch_map(maps.index);
    shared.barriers.start(plan.units, plan.tall * parts);
  }
  __syncthreads();
  wait_for_earlier_kernels();
  admit_next_kernel();
  multiply_passes<T, eights, UnitShape<parts>>(plan, place, maps, shared, memory);
#endif
}

}  // namespace phiquant::cuda
