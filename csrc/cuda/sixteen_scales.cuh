// Scale words of a pass to what scales its weights, in shared memory, by all warps that multiply. A
// lane has a row of a tile, and eight columns.
#pragma once

#include "few_rows_ring.cuh"
#include "grid.cuh"
#include "sixteen.cuh"

namespace phiquant::cuda {

// Of a bend: factors of p / 8 and of (p^3 - p) / 512, but for the scale.
struct ColumnBend {
  float linear, cubic;

  __device__ __forceinline__ static ColumnBend of(int bend, float unit) {
    const float cubic = kDeviceBends.of[bend] / 512;
    return {(kDeviceLines.of[bend] / 8 + cubic) * 8 * unit, cubic * 512 * unit};
  }

  // NaN if the word is none: fields 0 and 31 have no other bits set once one is added to them.
  __device__ __forceinline__ uint2 times(uint32_t word) const {
    const float size = __half2float(__ushort_as_half(static_cast<uint16_t>(word & ~kBendMask)));
    const float scale = ((word + 0x400) & 0x7800) == 0 ? quiet_nan() : size;
    return {__float_as_uint(linear * scale), __float_as_uint(cubic * scale)};
  }
};

struct ScaleMaker {
  static constexpr int kEach = 8;   // columns of a lane
  static constexpr int kFirst = 2;  // items of a warp that are asked for at once

  struct Words {
    uint32_t pairs[kEach / 2];
  };

  const SixteenPlan& plan;
  const SixteenPlace& place;
  const ColumnBend* bends;
  uint32_t to;
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
    const uint16_t* const words = plan.task.planes.scale + row * plan.groups + place.begin + from;
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
    const uint32_t at =
        to + ((item / across() * place.columns + from) * kSixteen + lane % kSixteen) * kScaleBytes;
#pragma unroll
    for (int i = 0; i < kEach; i++) {
      if (from + i >= place.columns) break;
      const uint32_t word = i % 2 == 0 ? of.pairs[i / 2] & 0xFFFF : of.pairs[i / 2] >> 16;
      put_pair(at + i * kSixteen * kScaleBytes, bends[word & kBendMask].times(word));
    }
  }

  __device__ __forceinline__ void run() const {
    const int items = across() * tall;
    for (int item = warp; item < items; item += kFirst * kColumnWarps) {
      Words words[kFirst];
#pragma unroll
      for (int i = 0; i < kFirst; i++)
        if (item + i * kColumnWarps < items) words[i] = load(item + i * kColumnWarps);
#pragma unroll
      for (int i = 0; i < kFirst; i++)
        if (item + i * kColumnWarps < items) store(item + i * kColumnWarps, words[i]);
    }
  }
};

}  // namespace phiquant::cuda
