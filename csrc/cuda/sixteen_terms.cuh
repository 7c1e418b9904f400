// Codes of a tile and column, times a column of x: in sums of 16 rows of the weight by `eights` of
// 8 rows of x, as mma.m16n8k16 has them. Lane 4 q + t has two rows of the weight, rows 2 t and
// 2 t + 1 of every eight of x, and columns 16 t .. 16 t + 15.
//
// No level is formed: positions p = index - 7 and p^3 - p = p (p^2 - 1), which is 504 at most, are
// exact in x's own type, bf16 (8 bits) or fp16, and a p + b p^3 = (a + b) p + b (p^3 - p). So x is
// taken as it is, and nothing is rounded before sums are. p / 8 and (p^3 - p) / 512 stand for them,
// so that sums of no x below 2^122 overflow.
//
// Instructions of 16 x 64 weights by 16 rows of x, 32 weights a lane: 76 to decode (fp16: 68), 16
// to bring x into their order, 16 for mma, 16 to apply scales; with loads and control 158.
#pragma once

#include "basis.cuh"
#include "few_rows_ring.cuh"
#include "fragments.cuh"
#include "sixteen.cuh"

namespace phiquant::cuda {

// `of[e]`: the 16 columns of a lane's row of eight e, in the order of the pairs that weights are
// decoded to.
template <int eights>
struct XColumn {
  Octet of[eights][2];

  // `from` and `other`: where the lane's halves are.
  __device__ __forceinline__ XColumn(uint32_t from, uint32_t other) {
#pragma unroll
    for (int e = 0; e < eights; e++) {
      of[e][0] = paired(quad_at<0>(from + e * 1024));
      of[e][1] = paired(quad_at<0>(other + e * 1024));
    }
  }
  // In rows of 128 bytes, as copies swizzle them.
  __device__ __forceinline__ static uint32_t place_of(int lane) {
    const int row = lane >> 2, part = lane & 3;
    return static_cast<uint32_t>(row * 128 + ((2 * part) ^ row) * 16);
  }
};

// Rows r and r + 8 of a tile and column: codes of a lane's 16 columns, factors of p / 8 and of
// (p^3 - p) / 512.
struct ColumnCodes {
  uint2 index[2], scale[2];
};

template <int eights>
struct EightSums {
  float of[eights][4];
};

// Eight weights of a row, in pairs: operands of two mma.
struct Operands {
  uint32_t of[4];
};

template <class T>
__device__ __forceinline__ void multiply_add(float (&sums)[4], uint32_t a0, uint32_t a1,
                                             uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  if constexpr (__is_same(T, __half)) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
}

// Eight weights of two rows, times those columns of x.
template <class T, int half, int eights>
__device__ __forceinline__ void multiply_eight(const Operands& upper, const Operands& lower,
                                               const XColumn<eights>& x, EightSums<eights>* sums) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
#pragma unroll
    for (int e = 0; e < eights; e++) {
      multiply_add<T>(sums->of[e], upper.of[i], lower.of[i], upper.of[i + 1], lower.of[i + 1],
                      x.of[e][half].pairs[i], x.of[e][half].pairs[i + 1]);
    }
  }
}

__device__ __forceinline__ uint32_t fma_pair(__nv_bfloat16, uint32_t a, uint32_t b, uint32_t c) {
  uint32_t sum;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
  return sum;
}
__device__ __forceinline__ uint32_t fma_pair(__half, uint32_t a, uint32_t b, uint32_t c) {
  uint32_t sum;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
  return sum;
}

// p / 8 of a word's indices.
__device__ __forceinline__ Operands positions(__nv_bfloat16 type, uint32_t word) {
  constexpr uint32_t kEighths = 0x3E003E00, kBack = 0xC187C187;  // 1/8, -135/8
  Operands p;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    p.of[i] = fma_pair(type, masked<0x000F000F, 0x43004300>(word >> 4 * i), kEighths, kBack);
  }
  return p;
}
__device__ __forceinline__ Operands positions(__half, uint32_t word) {
  Operands p;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t bits = word >> 4 * i;
    p.of[i] = bits_of(
        __hfma2(halves(masked<0x000F000F, 0x64006400>(bits)), both(0.125f), both(-1031.0f / 8)));
    p.of[i + 1] = bits_of(
        __hfma2(halves(masked<0x00F000F0, 0x64006400>(bits)), both(0.0078125f), both(-71.0f / 8)));
  }
  return p;
}

// (p^3 - p) / 512, exact.
template <class T>
__device__ __forceinline__ Operands cubes(const Operands& p) {
  constexpr uint32_t kMinusOnes = __is_same(T, __half) ? 0xA400A400 : 0xBC80BC80;  // -1/64
  constexpr uint32_t kMinusZeros = 0x80008000;
  Operands cubes;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    cubes.of[i] = fma_pair(T{}, fma_pair(T{}, p.of[i], p.of[i], kMinusOnes), p.of[i], kMinusZeros);
  }
  return cubes;
}

template <class T, int half, int eights>
__device__ __forceinline__ void multiply_words(uint32_t upper, uint32_t lower,
                                               const XColumn<eights>& x, EightSums<eights>* linear,
                                               EightSums<eights>* cubic) {
  const Operands above = positions(T{}, upper), below = positions(T{}, lower);
  multiply_eight<T, half>(above, below, x, linear);
  multiply_eight<T, half>(cubes<T>(above), cubes<T>(below), x, cubic);
}

template <class T, int eights>
__device__ __forceinline__ void multiply_column(const ColumnCodes& codes, const XColumn<eights>& x,
                                                EightSums<eights>* sums) {
  EightSums<eights> linear{}, cubic{};
  multiply_words<T, 0>(codes.index[0].x, codes.index[1].x, x, &linear, &cubic);
  multiply_words<T, 1>(codes.index[0].y, codes.index[1].y, x, &linear, &cubic);
#pragma unroll
  for (int i = 0; i < eights * 4; i++) {
    const uint2 scale = codes.scale[i % 4 / 2];
    float& sum = sums->of[i / 4][i % 4];
    sum = fmaf(__uint_as_float(scale.y), cubic.of[i / 4][i % 4], sum);
    sum = fmaf(__uint_as_float(scale.x), linear.of[i / 4][i % 4], sum);
  }
}

}  // namespace phiquant::cuda
