// What a warp of the kernel of up to 16 rows of x does in a pass.
#pragma once

#include "sixteen_ring.cuh"
#include "sixteen_scales.cuh"
#include "sixteen_terms.cuh"

namespace phiquant::cuda {

struct SixteenShared {
  SixteenRows rows;
  ExpertFinder finder;
  QuadBarriers quads[kQuads];
  FittedBend bends[kBendCount];
};

template <class Shape>
struct SixteenWorker {
  static constexpr int kEights = Shape::kEights, kDeviation = Shape::kDeviation;
  const SixteenPlan& plan;
  const SixteenPlace& place;
  const QuadFiller<Shape> filler;
  const FittedBend* bends;
  int lane, warp, row;
  uint32_t words, factors;      // in shared memory: of the block and the warp
  uint32_t index, quarters, x;  // of the lane: from where a unit begins; of its column
  UnitTurn turn;
  uint32_t x_parity = 0;
  EightSums<kEights> sums[Shape::kTall];

  // Lanes of half a warp have rows that meet each bank once.
  __device__ __forceinline__ SixteenWorker(const SixteenPlan& plan, const SixteenPlace& place,
                                           const SixteenMaps& maps, SixteenShared& shared,
                                           const SixteenRoom<Shape>& room, uint32_t memory)
      : plan(plan),
        place(place),
        filler{plan,
               place,
               maps,
               shared.quads[threadIdx.x / (32 * kQuad)],
               {plan, shared.rows},
               memory + room.units + threadIdx.x / (32 * kQuad) * plan.units * Shape::kUnitBytes,
               memory + room.boxes + threadIdx.x / (32 * kQuad) * Shape::kBoxBytes,
               static_cast<int>(threadIdx.x) / (32 * kQuad)},
        bends(shared.bends),
        lane(static_cast<int>(threadIdx.x) & 31),
        warp(static_cast<int>(threadIdx.x) / 32),
        row((lane >> 2 & 3) * 2 + (lane >> 4)),
        words(memory + room.words),
        factors(memory + room.factors + warp * Shape::kFactorBytes) {
    const int t = lane & 3, in_box = warp % kQuad;
    index = static_cast<uint32_t>(row * 128 + ((in_box * 2 + t / 2) ^ row) * 16 + t % 2 * 8);
    quarters = static_cast<uint32_t>(row * 64 + (in_box ^ row >> 1) * 16 + t * 4);
    x = filler.box + in_box * Shape::kXBytes + XColumn<kEights>::place_of(lane);
  }

  // Of each quad a warp of another scheduler.
  __device__ __forceinline__ bool fills() const {
    return lane == 0 && warp % kQuad == warp / kQuad;
  }

  // What scales the rows of a column, for all lanes.
  __device__ __forceinline__ void make_factors(int column) const {
    const uint32_t bends = shared_address(this->bends);
#pragma unroll
    for (int i = 0; i < Shape::kRows; i += 32) {
      if (i + 32 > Shape::kRows && i + lane >= Shape::kRows) break;
      const uint32_t word = half_at(words + (column * Shape::kRows + i + lane) * 2);
      put_pair(factors + (i + lane) * 8, factors_of(word, bends));
    }
    __syncwarp();
  }

  __device__ __forceinline__ XColumn<kEights> take_x() const {
    filler.barriers.x_full.wait(x_parity);
    XColumn<kEights> column(x);
    column.prepare(lane, plan.task.dtype == Dtype::kBFloat16);
    __syncwarp();  // all have been used: copies come here next
    if (lane == 0) filler.barriers.x_empty.arrive();
    return column;
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

  // Tiles [i, end) of a unit, as far as the pass has them.
  template <int part, int i, int end>
  __device__ __forceinline__ void multiply(uint32_t from, const XColumn<kEights>& x) {
    constexpr int tile = part * Shape::kPart + i;
    if constexpr (i < end && tile < Shape::kTall) {
      multiply_column<kDeviation>(codes<i, tile, 0>(from), codes<i, tile, 1>(from), x, &sums[tile]);
      multiply<part, i + 1, end>(from, x);
    }
  }

  // What is to follow the unit before this one in its place, and x of the next step, once all warps
  // of the quad have left those.
  __device__ __forceinline__ void refill(int number, int first) const {
    const int next = number - 1 + plan.units;
    if (number == 0 || next >= place.steps() * Shape::kParts) return;
    const UnitTurn last = turn.before(plan.units);
    filler.barriers.empty[last.at].wait(last.parity);
    filler.copy_unit(next, first, last.at);
  }
  __device__ __forceinline__ void refill_x(int step) const {
    if (step + 1 >= place.steps()) return;
    filler.barriers.x_empty.wait(x_parity);
    filler.copy_x(step + 1);
  }

  // A step's units from `part` on, of which a column beyond the last one has nothing. Others are
  // asked for after a unit's first tile: by then no warp is behind.
  template <int part>
  __device__ __forceinline__ void take_units(bool some, int step, int first,
                                             const XColumn<kEights>& x) {
    filler.barriers.full[turn.at].wait(turn.parity);
    const uint32_t from = filler.units + turn.at * Shape::kUnitBytes;
    if (some) multiply<part, 0, 1>(from, x);
    if (fills()) {
      refill(step * Shape::kParts + part, first);
      if (part == 0) refill_x(step);
    }
    __syncwarp();
    if (some) multiply<part, 1, Shape::kPart>(from, x);
    __syncwarp();
    if (lane == 0) filler.barriers.empty[turn.at].arrive();
    turn.advance(plan.units);
    if constexpr (part + 1 < Shape::kParts) take_units<part + 1>(some, step, first, x);
  }

  // Units [begin, end) of a pass, whose tiles begin with `first`, as far as there are places, which
  // all are empty.
  __device__ __forceinline__ void fill(int begin, int end, int first) const {
    end = min(end, min(plan.units, place.steps() * Shape::kParts));
    for (int i = begin; i < end; i++) {
      const int at = turn.at + i;
      filler.copy_unit(i, first, at < plan.units ? at : at - plan.units);
    }
  }

  // Before a pass, whose scale words were asked for. Most units are asked for once those have come,
  // which would wait for all that was asked for before.
  __device__ __forceinline__ void begin(int first) const {
    if (!fills()) return;
    filler.copy_x(0);
    fill(0, 1, first);
  }

  // A pass.
  __device__ __forceinline__ void run(int first) {
#pragma unroll
    for (int i = 0; i < Shape::kTall; i++) sums[i] = {};
    if (fills()) fill(1, kMostUnits, first);
    const int steps = place.steps();
    for (int step = 0, column = warp; step < steps; step++, column += kColumnWarps) {
      const bool some = column < place.columns;
      if (some) make_factors(column);
      const XColumn<kEights> x = take_x();
      take_units<0>(some, step, first, x);
      x_parity ^= 1;
    }
  }
};

}  // namespace phiquant::cuda
