// The warps of a product's block that decode and multiply what the ring holds.
#pragma once

#include "few_rows_levels.cuh"
#include "few_rows_ring.cuh"
#include "few_rows_sums.cuh"

namespace phiquant::cuda {

// One row and group, as a lane needs it.
struct Coefficients {
  uint32_t q;   // of its levels
  float scale;  // NaN if the scale word is none
};

template <int stages, int warps, int tall>
struct FewShared {
  Barrier full[stages], empty[stages];
  FittedBend bends[kBendCount];
  uint2 words[warps][32];
  Coefficients coefficients[warps][kUnitGroups][16 * tall];
};

__device__ __forceinline__ void multiply_add(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// One of the warps that multiply.
template <int deviation, int eights>
struct Multiplier {
  using Shape = FewShape<deviation, eights>;
  using Shared = FewShared<Shape::kStages, Shape::kWarps, Shape::kTall>;

  static constexpr int kTall = Shape::kTall;

  const FewPlan& plan;
  Shared& shared;
  int lane, warp, row, above;
  // Of this lane in a stage; and in shared memory.
  uint32_t index_offset, high_offset, x_offset, bends, put, coefficients, asked;
  uint2 words;  // of one row in the groups of two units
  TileSums<eights> sums[kTall];

  // Lanes of half a warp have rows 0, 1, 4 and 5 of 8, so that they meet each bank once.
  __device__ __forceinline__ Multiplier(const FewPlan& plan, Shared& shared)
      : plan(plan),
        shared(shared),
        lane(static_cast<int>(threadIdx.x) & 31),
        warp(static_cast<int>(threadIdx.x) / 32),
        row((lane >> 2 & 1) + (lane >> 3 & 1) * 4 + (lane >> 4) * 2),
        above(warp * 16 * kTall),
        sums{} {
    const int part = lane & 3, begin = above + row;
    index_offset = static_cast<uint32_t>(begin * 64 + (part / 2 ^ row >> 1) * 16 + part % 2 * 8);
    high_offset = Shape::kIndexBytes +
                  (deviation == 2 ? static_cast<uint32_t>(begin * 32 + (row >> 2) * 16 + part * 4)
                                  : index_offset);
    x_offset = static_cast<uint32_t>(Shape::kIndexBytes + Shape::kHighBytes + lane * 16);
    bends = shared_address(shared.bends);
    asked = shared_address(&shared.words[warp][lane]);
    put = shared_address(&shared.coefficients[warp][0][0] + lane);
    coefficients = shared_address(&shared.coefficients[warp][0][row]);
  }

  // Asks for the scale words of one of the warp's rows, of the unit `along` a tile and the one
  // after it. Where there are none any word will do: x is zero there.
  __device__ __forceinline__ void ask_words(int tile, int along) const {
    const int64_t row =
        min(int64_t{tile} * kUnitRows + above + lane % (16 * kTall), plan.task.out_features - 1);
    const int group = along * kUnitGroups;
    const uint16_t* const from = plan.task.planes.scale + row * plan.groups + group;
    if (plan.paired) return copy_eight(from, asked);
    uint32_t some[4];
#pragma unroll
    for (int i = 0; i < 4; i++) some[i] = __ldg(from + min(i, plan.groups - 1 - group));
    put_pair(asked, {some[0] | some[1] << 16, some[2] | some[3] << 16});
  }

  // Takes the words that were asked for, and asks for those of the next two units; the last ones of
  // a tile are followed by those of the next tile.
  __device__ __forceinline__ void advance_words(int tile, int along) {
    wait_for_copies();
    words = pair_at(asked);
    const int next = along / 2 * 2 + 2;
    next < plan.stages ? ask_words(tile, next) : ask_words(tile + 1, 0);
  }

  // What scales the warp's rows in the groups of a unit: one or two for each lane.
  __device__ __forceinline__ void put_scales(int along) const {
    const uint32_t both = along % 2 == 0 ? words.x : words.y;
#pragma unroll
    for (int i = 0; i < kTall; i++) {
      const uint32_t word = (kTall == 1 ? lane >= 16 : i == 1) ? both >> 16 : both & 0xFFFF;
      const uint2 bend = pair_at(bends + (word & kBendMask) * 8);
      const float size = __half2float(__ushort_as_half(static_cast<uint16_t>(word & ~kBendMask)));
      const bool bad = (word >> 10 & 31) - 1 >= 30;
      const float scale = bad ? quiet_nan() : size * __uint_as_float(bend.y);
      put_pair(put + i * 32 * 8, {bend.x, __float_as_uint(scale)});
    }
  }

  // One group of rows `row` and `row + 8` of a tile: 16 columns of each.
  __device__ __forceinline__ void decode(uint32_t stage, int group, int tile, const uint2 (&of)[2],
                                         uint32_t (&a)[4][4]) const {
    const uint32_t index = stage + (index_offset ^ group * 32) + tile * 16 * 64;
    const uint32_t high =
        stage + (high_offset ^ group * (deviation == 2 ? 16 : 32)) + tile * 16 * Shape::kHighRow;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const uint2 low = pair_at(index + r * 8 * 64);
      uint2 more{};
      if constexpr (deviation == 2) {
        more.x = word_at(high + r * 8 * Shape::kHighRow);
        more.y = more.x >> 16;
      }
      if constexpr (deviation == 4) more = pair_at(high + r * 8 * Shape::kHighRow);
      uint32_t levels[2][4];
      make_levels<deviation>(low.x, more.x, of[r].x, levels[0]);
      make_levels<deviation>(low.y, more.y, of[r].x, levels[1]);
#pragma unroll
      for (int i = 0; i < 8; i++) a[i / 2][r + i % 2 * 2] = levels[i / 4][i % 4];
    }
  }

  // One group of a stage.
  __device__ __forceinline__ void multiply(uint32_t stage, int group) {
    uint32_t a[kTall][4][4];
    uint2 of[kTall][2];  // bend and scale
#pragma unroll
    for (int tile = 0; tile < kTall; tile++) {
      const uint32_t from = coefficients + (group * kTall + tile) * 16 * 8;
      of[tile][0] = pair_at(from);
      of[tile][1] = pair_at(from + 8 * 8);
      decode(stage, group, tile, of[tile], a[tile]);
    }
    const uint32_t x = stage + x_offset + group * eights * kFragment;
#pragma unroll
    for (int eight = 0; eight < eights; eight++) {
      const uint4 low = quad_at<0>(x + eight * kFragment),
                  high = quad_at<512>(x + eight * kFragment);
#pragma unroll
      for (int tile = 0; tile < kTall; tile++) {
        float products[4] = {};
        multiply_add(products, a[tile][0], low.x, low.y);
        multiply_add(products, a[tile][1], low.z, low.w);
        multiply_add(products, a[tile][2], high.x, high.y);
        multiply_add(products, a[tile][3], high.z, high.w);
        const float upper = __uint_as_float(of[tile][0].y), lower = __uint_as_float(of[tile][1].y);
        float4& sum = sums[tile].of[eight];
        sum.x += products[0] * upper;
        sum.y += products[1] * upper;
        sum.z += products[2] * lower;
        sum.w += products[3] * lower;
      }
    }
  }

  __device__ __forceinline__ Part part_of(int tile, int i) const {
    return Part(plan, tile, warp * kTall + i, above + i * 16 + row);
  }

  // Sums of a tile are complete, or left for the block that comes last: true.
  __device__ __forceinline__ bool store_or_leave(int tile, bool whole) {
#pragma unroll
    for (int i = 0; i < kTall; i++) {
      if (whole) {
        store_few(plan, part_of(tile, i).row, Backs<eights>(plan), sums[i]);
      } else {
        leave(plan, part_of(tile, i), sums[i]);
      }
      sums[i] = {};
    }
    return !whole;
  }
  __device__ __forceinline__ void arrive_at(int tile) const {
    for (int i = 0; i < kTall; i++) arrive<eights>(plan, part_of(tile, i));
  }

  __device__ __forceinline__ void multiply_unit(int along, uint32_t ring,
                                                const Turn<Shape::kStages>& place) {
    const uint32_t stage = ring + place.stage * Shape::kStageBytes;
    put_scales(along);
    __syncwarp();
    shared.full[place.stage].wait(place.parity);
#pragma unroll
    for (int group = 0; group < kUnitGroups; group++) multiply(stage, group);
    __syncwarp();
    if (lane == 0) shared.empty[place.stage].arrive();
  }

  // Before the ring is filled.
  __device__ __forceinline__ void begin(int first) const {
    const int tile = first / plan.stages;
    ask_words(tile, (first - tile * plan.stages) / 2 * 2);
  }

  // All of a block's units, after `begin`. One goes by before others are told of what was left: by
  // then it has arrived, and the fence takes no time.
  __device__ __forceinline__ void run(int first, int last, uint32_t ring) {
    int tile = first / plan.stages, begin = first - tile * plan.stages, along = begin;
    advance_words(tile, along);
    Turn<Shape::kStages> place;
    bool left = false;
    wait_for_earlier_kernels();
    for (int at = first; at < last; at++, place.advance()) {
      multiply_unit(along, ring, place);
      if (left) arrive_at(tile - 1);
      left = false;
      if (++along == plan.stages) {
        advance_words(tile + 1, 0);
      } else if (along % 2 == 0) {
        advance_words(tile, along);
      }
      if (along < plan.stages || at + 1 == last) continue;
      left = store_or_leave(tile++, begin == 0);
      begin = along = 0;
    }
    wait_for_copies();
    end_at(tile, begin == 0 && along == plan.stages);
  }

  __device__ __forceinline__ void end_at(int tile, bool whole) {
    if (whole) {
      store_or_leave(tile, true);
      return;
    }
#pragma unroll
    for (int i = 0; i < kTall; i++) finish(plan, part_of(tile, i), sums[i]);
  }
};

}  // namespace phiquant::cuda
