// Codes of eight weights of one row to operands of the tensor cores, in packed halves.
//
// A level is a * p + b * p^3, and a sum over weights of one group a * sum(x p) + b * sum(x p^3): so
// the tensor cores are given positions and their cubes, and no level is ever formed. A position is
// exact in fp16 up to 4 deviation bits, the cube of an index alone too; else a cube is rounded
// twice, which stays below 2^-11 of the level. Pairs are of weights 0 and 4, 1 and 5, 2 and 6, 3
// and 7: as nibbles lie four apart in the halves of a word.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace phiquant::cuda {

__device__ __forceinline__ __half2 halves(uint32_t bits) {
  return *reinterpret_cast<const __half2*>(&bits);
}
__device__ __forceinline__ uint32_t bits_of(__half2 pair) {
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ __half2 both(float value) { return __float2half2_rn(value); }

// bits & mask | pattern: one instruction.
template <uint32_t mask, uint32_t pattern>
__device__ __forceinline__ uint32_t masked(uint32_t bits) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(result) : "r"(bits), "n"(mask), "r"(pattern));
  return result;
}

// 1.0 with a code in the upper bits of its mantissa.
template <uint32_t mask>
__device__ __forceinline__ __half2 one_and(uint32_t bits) {
  return halves(masked<mask, 0x3C003C00>(bits));
}

// Four pairs of positions p, and what is to be summed up with their cubes: p and q for `linear`
// terms, c and e for `cubic` ones; q and e only with 8 deviation bits.
struct Basis {
  __half2 p[4], c[4];
};
struct FineBasis {
  __half2 q[4], e[4];
};

template <int shift>
__device__ __forceinline__ uint32_t shifted(uint32_t bits) {
  return shift >= 0 ? bits << shift : bits >> -shift;
}

// p = index - 7. 17 instructions with the cubes.
__device__ __forceinline__ void index_positions(uint32_t index, __half2 (&p)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t word = index >> 4 * i;
    p[i] = __hadd2(halves(masked<0x000F000F, 0x64006400>(word)), both(-1031.0f));
    p[i + 1] = __hfma2(halves(masked<0x00F000F0, 0x64006400>(word)), both(0.0625f), both(-71.0f));
  }
}

// p = (index * 4 + deviation + 1/2) / 4 - 7.5; `deviation`: 16 bits.
__device__ __forceinline__ void quarter_positions(uint32_t index, uint32_t deviation,
                                                  __half2 (&p)[4]) {
  const uint32_t spread = __byte_perm(deviation, 0, 0x4140);  // codes 0..3, and 4..7 16 bits on
  const uint32_t at6[4] = {index << 6, index << 2, index >> 2, index >> 6};
  const uint32_t at4[4] = {spread << 4, spread << 2, spread, spread >> 2};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const uint32_t mantissa = masked<0x03C003C0, 0x3C003C00>(at6[i]) | (at4[i] & 0x00300030);
    p[i] = __hfma2(halves(mantissa), both(16.0f), both(-23.375f));
  }
}

// p = (index * 16 + deviation + 1/2) / 16 - 7.5. 16 instructions: codes are joined to bytes first.
__device__ __forceinline__ void fine_positions(uint32_t index, uint32_t deviation,
                                               __half2 (&p)[4]) {
  constexpr uint32_t kLow = 0x0F0F0F0F;
  const uint32_t even = (index << 4 & ~kLow) | (deviation & kLow);
  const uint32_t odd = (index & ~kLow) | (deviation >> 4 & kLow);
  const uint32_t at2[4] = {even << 2, odd << 2, even >> 6, odd >> 6};
#pragma unroll
  for (int i = 0; i < 4; i++)
    p[i] = __hfma2(one_and<0x03FC03FC>(at2[i]), both(16.0f), both(-23.46875f));
}

// What the next 4 deviation bits add to p: (low - 7.5) / 256.
__device__ __forceinline__ void finer_positions(uint32_t low, __half2 (&q)[4]) {
  const uint32_t at6[4] = {low << 6, low << 2, low >> 2, low >> 6};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    q[i] = __hfma2(one_and<0x03C003C0>(at6[i]), both(0.0625f), both(-0.091796875f));
  }
}

template <int deviation>
__device__ __forceinline__ void make_basis(uint32_t index, uint32_t high, Basis* basis) {
  if constexpr (deviation == 0) index_positions(index, basis->p);
  if constexpr (deviation == 2) quarter_positions(index, high, basis->p);
  if constexpr (deviation >= 4) fine_positions(index, high, basis->p);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const __half2 p = basis->p[i];
    basis->c[i] = __hmul2(__hmul2(p, p), p);
  }
}

// (p + q)^3 - p^3 without q^3, which is below 2^-13 of a level.
__device__ __forceinline__ void make_fine_basis(const Basis& basis, uint32_t low, FineBasis* fine) {
  finer_positions(low, fine->q);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const __half2 p = basis.p[i], q = fine->q[i];
    fine->e[i] = __hmul2(__hmul2(q, both(3.0f)), __hfma2(p, q, __hmul2(p, p)));
  }
}

}  // namespace phiquant::cuda
