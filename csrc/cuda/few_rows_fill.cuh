// The thread of a product's block that fills the ring in shared memory with codes and x.
#pragma once

#include "few_rows_ring.cuh"
#include "few_rows_shape.cuh"

namespace phiquant::cuda {

// The thread that fills the ring with a block's units, [first, last).
template <int deviation, class Shape>
struct Filler {
  const FewPlan& plan;
  const CUtensorMap &index, &high;
  uint8_t* ring;
  int first, last;

  __device__ __forceinline__ int ahead() const { return min(Shape::kStages, last - first); }

  __device__ __forceinline__ void copy_weights(int unit, int stage, Barrier& full) const {
    const uint32_t to = shared_address(ring) + stage * Shape::kStageBytes;
    const int tile = unit / plan.stages, along = unit - tile * plan.stages;
    full.expect(Shape::kStageBytes);
    copy_box(index, along * (kUnitGroups * 32), tile * kUnitRows, to, full);
    if constexpr (deviation > 0) {
      copy_box(high, along * (kUnitGroups * 8 * deviation), tile * kUnitRows,
               to + Shape::kIndexBytes, full);
    }
  }
  __device__ __forceinline__ void copy_x(int unit, int stage, Barrier& full) const {
    copy_bytes(plan.x + unit % plan.stages * (Shape::kXBytes / 16), Shape::kXBytes,
               ring + stage * Shape::kStageBytes + Shape::kIndexBytes + Shape::kHighBytes, full);
  }

  __device__ __forceinline__ void begin(Barrier* full, Barrier* empty) const {
    prefetch_map(index);
    if constexpr (deviation > 0) prefetch_map(high);
    for (int i = 0; i < Shape::kStages; i++) {
      full[i].start(1);
      empty[i].start(Shape::kWarps);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }

  // Once the other warps know of the barriers, and have asked for their first scale words: behind
  // all weights that fit into the ring those would come 4 us later.
  __device__ __forceinline__ void run(Barrier* full, Barrier* empty) const {
    for (int i = 0; i < ahead(); i++) copy_weights(first + i, i, full[i]);
    wait_for_earlier_kernels();
    admit_next_kernel();
    asm volatile("fence.proxy.async.global;" ::: "memory");
    for (int i = 0; i < ahead(); i++) copy_x(first + i, i, full[i]);
    Turn<Shape::kStages> turn;
    for (int unit = first + ahead(); unit < last; unit++, turn.advance()) {
      empty[turn.stage].wait(turn.parity);
      copy_weights(unit, turn.stage, full[turn.stage]);
      copy_x(unit, turn.stage, full[turn.stage]);
    }
  }
};

}  // namespace phiquant::cuda
