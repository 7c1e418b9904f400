// Scale words of a pass to shared memory, by all warps that multiply; and to what scales a column's
// weights, by the warp that takes it.
#pragma once

#include "few_rows_levels.cuh"
#include "few_rows_ring.cuh"
#include "sixteen_rows.cuh"

namespace phiquant::cuda {

// A lane has a row of a tile, and eight columns.
template <class Shape>
struct WordLoader {
  static constexpr int kEach = 8;    // columns of a lane
  static constexpr int kAtOnce = 2;  // items of a warp that are asked for at once

  struct Words {
    uint32_t pairs[kEach / 2];
  };
  using Items = Words[kAtOnce];

  const SixteenPlan& plan;
  const SixteenPlace& place;
  const RowsOf<Shape> rows;
  uint16_t* to;     // [column][row]
  int first, tall;  // tiles of this pass
  int warp, lane;

  // An item is 16 columns of a tile.
  __device__ __forceinline__ int across() const {
    return (place.columns + 2 * kEach - 1) / (2 * kEach);
  }
  __device__ __forceinline__ int column(int item) const {
    return item % across() * (2 * kEach) + lane / kSixteen * kEach;
  }

  // Beyond the end any word will do.
  __device__ __forceinline__ Words load(int item) const {
    const int64_t row = int64_t{first + item / across()} * kSixteen + lane % kSixteen;
    const int from = column(item), count = place.columns - from;
    Words found{{0x3C003C00, 0x3C003C00, 0x3C003C00, 0x3C003C00}};
    if (row >= plan.task.out_features) return found;
    const uint16_t* const words =
        plan.task.planes.scale + (rows.weight() + row) * plan.groups + place.begin + from;
    if (plan.aligned_words && count >= kEach) {
      const uint4 four = __ldcg(reinterpret_cast<const uint4*>(words));
      return {{four.x, four.y, four.z, four.w}};
    }
#pragma unroll
    for (int i = 0; i < kEach; i++) {
      if (i >= count) break;
      const uint32_t word = __ldcg(words + i);
      uint32_t& pair = found.pairs[i / 2];
      pair = i % 2 == 0 ? (pair & 0xFFFF0000) | word : (pair & 0xFFFF) | word << 16;
    }
    return found;
  }

  __device__ __forceinline__ void store(int item, const Words& of) const {
    const int from = column(item);
    uint16_t* const row = to + item / across() * kSixteen + lane % kSixteen;
#pragma unroll
    for (int i = 0; i < kEach; i++) {
      if (from + i >= place.columns) break;
      const uint32_t word = i % 2 == 0 ? of.pairs[i / 2] & 0xFFFF : of.pairs[i / 2] >> 16;
      row[(from + i) * Shape::kRows] = static_cast<uint16_t>(word);
    }
  }

  __device__ __forceinline__ void ask(int item, Items& words) const {
    const int items = across() * tall;
#pragma unroll
    for (int i = 0; i < kAtOnce; i++)
      if (item + i * kColumnWarps < items) words[i] = load(item + i * kColumnWarps);
  }

  // The warp's, of which the first ones have been asked for.
  __device__ __forceinline__ void run(Items& words) const {
    const int items = across() * tall;
    for (int item = warp; item < items;) {
#pragma unroll
      for (int i = 0; i < kAtOnce; i++)
        if (item + i * kColumnWarps < items) store(item + i * kColumnWarps, words[i]);
      item += kAtOnce * kColumnWarps;
      ask(item, words);
    }
  }
};

// Bend and scale of a row of a column; the scale is NaN if the word is none: fields 0 and 31 have
// no other bits set once one is added to them.
__device__ __forceinline__ uint2 factors_of(uint32_t word, uint32_t bends) {
  const uint2 bend = pair_at(bends + (word & kBendMask) * 8);
  const float size = __half2float(__ushort_as_half(static_cast<uint16_t>(word & ~kBendMask)));
  const bool bad = ((word + 0x400) & 0x7800) == 0;
  return {bend.x, __float_as_uint(bad ? quiet_nan() : size * __uint_as_float(bend.y))};
}

}  // namespace phiquant::cuda
