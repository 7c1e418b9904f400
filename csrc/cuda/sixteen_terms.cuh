// Codes of a tile and column, times a column of x: in sums of 16 rows of the weight by `eights` of
// 8 rows of x, as mma.m16n8k16 has them. Lane 4 q + t has two rows of the weight, rows 2 t and
// 2 t + 1 of every eight of x, and columns 16 t .. 16 t + 15.
#pragma once

#include "few_rows_levels.cuh"
#include "few_rows_ring.cuh"
#include "fragments.cuh"
#include "sixteen.cuh"

namespace phiquant::cuda {

// `of[e]`: the 16 columns of a lane's row of eight e, fp16, in the order of the pairs that weights
// are decoded to. `back`: what sums of rows 2 t and 2 t + 1 of eight e are to be multiplied with.
template <int eights>
struct XColumn {
  Octet of[eights][2];
  float back[eights][2];

  // `from`: where the lane's first eight columns are; the others are 16 bytes before or after.
  __device__ __forceinline__ explicit XColumn(uint32_t from) {
#pragma unroll
    for (int e = 0; e < eights; e++) {
      of[e][0] = paired(quad_at<0>(from + e * 1024));
      of[e][1] = paired(quad_at<0>((from ^ 16) + e * 1024));
    }
  }

  // In rows of 128 bytes, as copies swizzle them.
  __device__ __forceinline__ static uint32_t place_of(int lane) {
    const int row = lane >> 2, part = lane & 3;
    return static_cast<uint32_t>(row * 128 + ((2 * part) ^ row) * 16);
  }

  // bf16 to fp16, multiplied by a power of two for every row (fragments.cuh); fp16 stays.
  __device__ __forceinline__ void prepare(int lane, bool brain) {
#pragma unroll
    for (int e = 0; e < eights; e++) {
      back[e][0] = back[e][1] = 1;
      if (!brain) continue;
      uint32_t largest = max(largest_of(of[e][0]), largest_of(of[e][1]));
      largest = max(largest, __shfl_xor_sync(~0u, largest, 1));
      largest = max(largest, __shfl_xor_sync(~0u, largest, 2));
      const Shift shift = shift_of(largest);
      to_halves(shift.there, &of[e][0]);
      to_halves(shift.there, &of[e][1]);
      back[e][0] = __shfl_sync(~0u, shift.back, (lane & 3) * 8);
      back[e][1] = __shfl_sync(~0u, shift.back, (lane & 3) * 8 + 4);
    }
  }
};

// A row of a tile and column: 16 columns' codes; bend and scale.
struct ColumnCodes {
  uint2 index, high, factors;
};

template <int eights>
struct EightSums {
  float of[eights][4];
};

__device__ __forceinline__ void multiply_add(float (&sums)[4], const uint32_t (&upper)[4],
                                             const uint32_t (&lower)[4], int pair, uint32_t b0,
                                             uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(upper[pair]), "r"(lower[pair]), "r"(upper[pair + 1]), "r"(lower[pair + 1]), "r"(b0),
        "r"(b1));
}

// Half of rows r and r + 8 of a tile and column: eight columns of each.
template <int half, int eights>
__device__ __forceinline__ void multiply_half(const uint32_t (&upper)[4],
                                              const uint32_t (&lower)[4], const XColumn<eights>& x,
                                              EightSums<eights>* products) {
#pragma unroll
  for (int pair = 0; pair < 4; pair += 2) {
#pragma unroll
    for (int e = 0; e < eights; e++) {
      const uint32_t (&columns)[4] = x.of[e][half].pairs;
      multiply_add(products->of[e], upper, lower, pair, columns[pair], columns[pair + 1]);
    }
  }
}

template <int deviation, int eights>
__device__ __forceinline__ void multiply_column(const ColumnCodes& above, const ColumnCodes& below,
                                                const XColumn<eights>& x, EightSums<eights>* sums) {
  EightSums<eights> products{};
  uint32_t upper[4], lower[4];
  make_levels<deviation>(above.index.x, above.high.x, above.factors.x, upper);
  make_levels<deviation>(below.index.x, below.high.x, below.factors.x, lower);
  multiply_half<0>(upper, lower, x, &products);
  make_levels<deviation>(above.index.y, above.high.y, above.factors.x, upper);
  make_levels<deviation>(below.index.y, below.high.y, below.factors.x, lower);
  multiply_half<1>(upper, lower, x, &products);
#pragma unroll
  for (int i = 0; i < eights * 4; i++) {
    const float scale = __uint_as_float((i % 4 < 2 ? above : below).factors.y);
    float& sum = sums->of[i / 4][i % 4];
    sum = fmaf(products.of[i / 4][i % 4], scale * x.back[i / 4][i % 2], sum);
  }
}

}  // namespace phiquant::cuda
