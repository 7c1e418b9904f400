// Codes and x on their way to shared memory, by bulk copies.
#pragma once

#include "few_rows_ring.cuh"
#include "sixteen.cuh"

namespace phiquant::cuda {

// Of planes, for each half of a pass's tiles.
struct SixteenMaps {
  CUtensorMap x, index[2], high[2];
};

// Of a quad. `empty`: its warps have read.
struct QuadBarriers {
  Barrier full[kMostUnits], empty[kMostUnits], x_full, x_empty;

  // By one thread.
  __device__ __forceinline__ void start(int units) {
    for (int i = 0; i < units; i++) {
      full[i].start(1);
      empty[i].start(kQuad);
    }
    x_full.start(1);
    x_empty.start(kQuad);
  }
};

// A unit's place in its ring, and the parity of its barriers' phase; passes go on where the last
// one ended.
struct UnitTurn {
  int at = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void advance(int units) {
    if (++at == units) {
      at = 0;
      parity ^= 1;
    }
  }
};

__device__ __forceinline__ void copy_cube(const CUtensorMap& map, int x, int y, int z, void* to,
                                          const Barrier& full) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3, %4}], [%5];" ::"r"(shared_address(to)),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(full.address())
      : "memory");
}

// What one thread of a quad asks for. What lies beyond a weight's rows and columns becomes zero.
template <class Shape>
struct QuadFiller {
  const SixteenPlan& plan;
  const SixteenPlace& place;
  const SixteenMaps& maps;
  QuadBarriers& barriers;
  uint8_t *units, *box;
  int quad;

  __device__ __forceinline__ int column_of(int step) const {
    return place.begin + step * kColumnWarps + quad * kQuad;
  }

  // x of a step.
  __device__ __forceinline__ void copy_x(int step) const {
    barriers.x_full.expect(Shape::kBoxBytes);
    if (plan.whole_groups) return copy_cube(maps.x, 0, 0, column_of(step), box, barriers.x_full);
    for (int i = 0; i < kQuad; i++) {
      copy_cube(maps.x, (column_of(step) + i) * kColumn, 0, 0, box + i * Shape::kXBytes,
                barriers.x_full);
    }
  }

  // The pass's unit of this number, to a place that is empty. `first`: tile of the pass.
  __device__ __forceinline__ void copy_unit(int number, int first, int at) const {
    const int half = number % Shape::kHalves, column = column_of(number / Shape::kHalves);
    const int row = (first + half * Shape::kHalf) * kSixteen;
    uint8_t* const to = units + at * Shape::kUnitBytes;
    Barrier& full = barriers.full[at];
    full.expect(Shape::tiles_of(half) * kSixteen * (128 + Shape::kHighRow));
    copy_box(maps.index[half], column * (kColumn / 2), row, to, full);
    if constexpr (Shape::kDeviation > 0) {
      copy_box(maps.high[half], column * (kColumn / 8 * Shape::kDeviation), row,
               to + Shape::kIndexBytes, full);
    }
  }
};

}  // namespace phiquant::cuda
