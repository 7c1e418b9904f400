// Units on their way to shared memory, by bulk copies of one thread; and where warps read them.
#pragma once

#include "few_rows_ring.cuh"
#include "sixteen_terms.cuh"

namespace phiquant::cuda {

struct SixteenMaps {
  CUtensorMap x, index;
};

struct UnitBarriers {
  Barrier full[kMostUnits], empty[kMostUnits];

  // By one thread.
  __device__ __forceinline__ void start(int units, int warps) {
    for (int i = 0; i < units; i++) {
      full[i].start(1);
      empty[i].start(warps);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
};

// A unit of the ring, and the parity of its barriers' phases; passes go on where the last one
// ended.
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

// The thread that fills the ring. What lies beyond a weight's rows and columns becomes zero.
template <int eights, class Shape>
struct UnitFiller {
  using Unit = SixteenUnit<eights>;
  static constexpr int kColumns = Shape::kColumns;

  const SixteenPlan& plan;
  const SixteenPlace& place;
  const SixteenMaps& maps;
  UnitBarriers& barriers;
  uint8_t* ring;
  UnitTurn turn;

  __device__ __forceinline__ void copy(int column, int first, uint8_t* to, Barrier& full) const {
    full.expect(Unit::bytes(plan.tall, kColumns));
    uint8_t* const x = to + Unit::index_bytes(plan.tall, kColumns);
    for (int i = 0; i < kColumns; i += kBoxColumns) {
      copy_box(maps.index, (column + i) * (kColumn / 2), first * kSixteen,
               to + i / kBoxColumns * plan.tall * kSixteen * 128, full);
    }
    for (int i = 0; i < kColumns; i++) {
      copy_box(maps.x, (column + i) * kColumn, 0, x + i * Unit::kXBytes, full);
    }
  }

  // Units of a pass.
  __device__ __forceinline__ void run(int first, int from, int to) {
    for (int unit = from; unit < to; unit++) {
      barriers.empty[turn.at].wait(turn.parity ^ 1);
      copy(place.begin + unit * kColumns, first, ring + turn.at * Unit::bytes(plan.tall, kColumns),
           barriers.full[turn.at]);
      turn.advance(plan.units);
    }
  }
};

// A number that the compiler is not to make anew wherever it is used.
__device__ __forceinline__ uint32_t held(uint32_t number) {
  asm volatile("" : "+r"(number));
  return number;
}

// Where a lane of a warp finds its columns of a unit: codes of rows `row` and `row + 8` of its
// tile, and x. Lanes of half a warp have rows that meet each bank once.
template <int eights, class Shape>
struct UnitReader {
  using Unit = SixteenUnit<eights>;

  int row;
  uint32_t index, x;  // of the first column, from where the unit begins

  __device__ __forceinline__ UnitReader(const SixteenPlan& plan, int tile, int part, int lane)
      : row((lane >> 2 & 3) * 2 + (lane >> 4)) {
    const int t = lane & 3, column = part * Shape::kEach;
    const int box = column / kBoxColumns * plan.tall * kSixteen, in_box = column % kBoxColumns;
    const int at_row = box + tile * kSixteen + row;
    index =
        held(static_cast<uint32_t>(at_row * 128 + ((in_box * 2 + t / 2) ^ row) * 16 + t % 2 * 8));
    x = held(static_cast<uint32_t>(Unit::index_bytes(plan.tall, Shape::kColumns) +
                                   column * Unit::kXBytes) +
             XColumn<eights>::place_of(lane));
  }

  // Column i of the warp's; `scales`: of the lane's tile, row and first column.
  template <int i>
  __device__ __forceinline__ ColumnCodes codes(uint32_t unit, uint32_t scales) const {
    constexpr int kScales = i * kSixteen * kScaleBytes;
    const uint32_t from = unit + (index ^ i * (kColumn / 2));
    return {{pair_at(from), pair_at(from + 8 * 128)},
            {pair_at(scales + kScales), pair_at(scales + kScales + 8 * kScaleBytes)}};
  }
  template <int i>
  __device__ __forceinline__ XColumn<eights> x_column(uint32_t unit) const {
    return {unit + x + i * Unit::kXBytes, unit + (x ^ 16) + i * Unit::kXBytes};
  }
};

}  // namespace phiquant::cuda
