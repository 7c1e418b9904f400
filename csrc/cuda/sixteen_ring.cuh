// Codes and x on their way to shared memory, by bulk copies of one thread.
#pragma once

#include "few_rows_ring.cuh"
#include "sixteen.cuh"

namespace phiquant::cuda {

// Of planes, for each half of a pass's tiles.
struct SixteenMaps {
  CUtensorMap x, index[2], high[2];
};

template <int size>
struct RingBarriers {
  Barrier full[size], empty[size];

  __device__ __forceinline__ void start(int count) {
    for (int i = 0; i < count; i++) {
      full[i].start(1);
      empty[i].start(kQuad);
    }
  }
};

struct SixteenBarriers {
  RingBarriers<kMostUnits> units;
  RingBarriers<kMostBoxes> boxes;

  // By one thread.
  __device__ __forceinline__ void start(const SixteenPlan& plan) {
    units.start(plan.units);
    boxes.start(plan.boxes);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
};

// A place in a ring, and the parity of its barriers' phases; passes go on where the last one ended.
struct RingTurn {
  int at;
  uint32_t parity = 0;

  __device__ __forceinline__ void advance(int by, int size) {
    at += by;
    if (at >= size) {
      at -= size;
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

// The thread that fills the rings, in the order in which warps want them. What lies beyond a
// weight's rows and columns becomes zero.
template <class Shape>
struct RingFiller {
  const SixteenPlan& plan;
  const SixteenPlace& place;
  const SixteenMaps& maps;
  SixteenBarriers& barriers;
  uint8_t *units, *boxes;
  RingTurn unit{0}, box{0};

  // x of a box's columns.
  __device__ __forceinline__ void copy_x(int column) {
    barriers.boxes.empty[box.at].wait(box.parity ^ 1);
    Barrier& full = barriers.boxes.full[box.at];
    uint8_t* const to = boxes + box.at * Shape::kBoxBytes;
    full.expect(Shape::kBoxBytes);
    if (plan.whole_groups) {
      copy_cube(maps.x, 0, 0, column, to, full);
    } else {
      for (int i = 0; i < kQuad; i++) {
        copy_cube(maps.x, (column + i) * kColumn, 0, 0, to + i * Shape::kXBytes, full);
      }
    }
    box.advance(1, plan.boxes);
  }

  template <int half>
  __device__ __forceinline__ void copy_codes(int column, int first) {
    constexpr int kTiles = Shape::tiles_of(half);
    const int tile = first + half * Shape::kHalf;
    barriers.units.empty[unit.at].wait(unit.parity ^ 1);
    Barrier& full = barriers.units.full[unit.at];
    uint8_t* const to = units + unit.at * Shape::kUnitBytes;
    full.expect(kTiles * kSixteen * (128 + Shape::kHighRow));
    copy_box(maps.index[half], column * (kColumn / 2), tile * kSixteen, to, full);
    if constexpr (Shape::kDeviation > 0) {
      copy_box(maps.high[half], column * (kColumn / 8 * Shape::kDeviation), tile * kSixteen,
               to + Shape::kIndexBytes, full);
    }
    unit.advance(1, plan.units);
  }

  // Steps of a pass whose tiles begin with `first`; quads [from, to) of a step's first half, and
  // all of what follows it.
  __device__ __forceinline__ void begin(int first, int quads) {
    for (int quad = 0; quad < quads; quad++) {
      copy_x(place.begin + quad * kQuad);
      copy_codes<0>(place.begin + quad * kQuad, first);
    }
  }
  __device__ __forceinline__ void go_on(int first, int quads) {
    const int steps = place.steps();
    for (int step = 0; step < steps; step++) {
      const int column = place.begin + step * kColumnWarps;
      for (int quad = step == 0 ? quads : 0; quad < kQuads; quad++) {
        copy_x(column + quad * kQuad);
        copy_codes<0>(column + quad * kQuad, first);
      }
      if constexpr (Shape::kHalves > 1) {
        for (int quad = 0; quad < kQuads; quad++) copy_codes<1>(column + quad * kQuad, first);
      }
    }
  }
};

}  // namespace phiquant::cuda
