// Codes and x on their way to shared memory, by bulk copies.
#pragma once

#include "few_rows_ring.cuh"
#include "sixteen_rows.cuh"

namespace phiquant::cuda {

// Of planes: for any unit but a step's last one, and for that.
struct SixteenMaps {
  CUtensorMap x, index[2], high[2];
};

struct SixteenMapsOf {
  SixteenMaps of[kMostWeights];
};

// Of a quad. `empty`: its warps have read.
struct QuadBarriers {
  Barrier full[kMostUnits], empty[kMostUnits], x_full, x_empty;

  // By a thread of each warp of the quad: barriers begin one after the other.
  __device__ __forceinline__ void start(int warp, int units) {
    for (int i = warp; i < units; i += kQuad) {
      full[i].start(1);
      empty[i].start(kQuad);
    }
    if (warp == 0) x_full.start(1);
    if (warp == 1) x_empty.start(kQuad);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
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
  __device__ __forceinline__ UnitTurn before(int units) const {
    return at == 0 ? UnitTurn{units - 1, parity ^ 1} : UnitTurn{at - 1, parity};
  }
};

__device__ __forceinline__ void copy_cube(const CUtensorMap& map, int x, int y, int z, uint32_t to,
                                          const Barrier& full) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3, %4}], [%5];" ::"r"(to),
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
  const RowsOf<Shape> rows;
  uint32_t units, box;  // of the quad, in shared memory
  int quad;

  __device__ __forceinline__ int column_of(int step) const {
    return place.begin + step * kColumnWarps + quad * kQuad;
  }

  // x of a step.
  __device__ __forceinline__ void copy_x(int step) const {
    barriers.x_full.expect(Shape::kBoxBytes);
    if (plan.whole_groups) {
      return copy_cube(maps.x, 0, rows.x(), column_of(step), box, barriers.x_full);
    }
    for (int i = 0; i < kQuad; i++) {
      copy_cube(maps.x, (column_of(step) + i) * kColumn, rows.x(), 0, box + i * Shape::kXBytes,
                barriers.x_full);
    }
  }

  // The pass's unit of this number, to a place that is empty. `first`: tile of the pass.
  __device__ __forceinline__ void copy_unit(int number, int first, int at) const {
    const int part = number % Shape::kParts, column = column_of(number / Shape::kParts);
    const int row = rows.weight() + (first + part * Shape::kPart) * kSixteen;
    const int last = part == Shape::kParts - 1;
    const uint32_t to = units + at * Shape::kUnitBytes;
    Barrier& full = barriers.full[at];
    full.expect((last ? Shape::kLast : Shape::kPart) * kSixteen * (128 + Shape::kHighRow));
    copy_box(maps.index[last], column * (kColumn / 2), row, to, full);
    if constexpr (Shape::kDeviation > 0) {
      copy_box(maps.high[last], column * (kColumn / 8 * Shape::kDeviation), row,
               to + Shape::kIndexBytes, full);
    }
  }
};

}  // namespace phiquant::cuda
