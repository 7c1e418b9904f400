// Exact bf16 weights, a strip at a time: one or more rows side by side, all lanes of a warp, 16 or
// 32 weights a lane. Which floats their sub-cells hold; exact_window.cuh adds the remainders.
#pragma once

#include "edge_table.cuh"
#include "exact_stream.cuh"
#include "octets.cuh"
#include "overlap.cuh"

namespace phiquant::cuda {

// Weights that are found and put together at once.
inline constexpr int kSixteen = 16;

// What a lane reads of the lossy planes: nibbles of its octets, and their group's scale word.
template <int sixteens>
struct StripCodes {
  static constexpr int kOctets = 2 * sixteens;
  uint32_t index[kOctets], deviation[kOctets], word;
};

// Of two octets, the first an even one, or of four, the first a fourth one. They are read once:
// past the L1 cache.
__device__ __forceinline__ void load_nibbles(const uint8_t* plane, int octet,
                                             uint32_t (&nibbles)[2]) {
  asm("ld.global.nc.L1::no_allocate.L2::128B.v2.b32 {%0, %1}, [%2];"
      : "=r"(nibbles[0]), "=r"(nibbles[1])
      : "l"(reinterpret_cast<const uint32_t*>(plane) + octet));
}
__device__ __forceinline__ void load_nibbles(const uint8_t* plane, int octet,
                                             uint32_t (&nibbles)[4]) {
  asm("ld.global.nc.L1::no_allocate.L2::128B.v4.b32 {%0, %1, %2, %3}, [%4];"
      : "=r"(nibbles[0]), "=r"(nibbles[1]), "=r"(nibbles[2]), "=r"(nibbles[3])
      : "l"(reinterpret_cast<const uint32_t*>(plane) + octet));
}

// `octet`: of the plane; `shift`: octets of a group, as a power of two, at least 3.
template <int sixteens>
__device__ __forceinline__ StripCodes<sixteens> load_strip(const Planes& planes, int octet,
                                                           int shift) {
  StripCodes<sixteens> codes;
  load_nibbles(planes.index, octet, codes.index);
  load_nibbles(planes.deviation, octet, codes.deviation);
  codes.word = __ldg(planes.scale + (octet >> shift));
  return codes;
}

__device__ __forceinline__ void fetch_strip(const Planes& planes, int octet, int shift) {
  fetch_to_l2(planes.index + int64_t{4} * octet);
  fetch_to_l2(planes.deviation + int64_t{4} * octet);
  fetch_to_l2(planes.scale + (octet >> shift));
}

// 16 weights of a lane: their sub-cells' first floats, in pairs, the first one low; the bits of the
// remainder of each one that is low, and 16 plus those of each one that is high; and the bits of
// all remainders.
struct Sixteen {
  uint32_t first[2][4];
  int low[2][4], high[2][4];
  int bits;

  __device__ __forceinline__ int middle(int pair) const { return low[pair / 4][pair % 4]; }
  __device__ __forceinline__ int end(int pair) const {
    return low[pair / 4][pair % 4] + high[pair / 4][pair % 4] - 16;
  }
};

// Whole codes of an octet's nibbles, of its even weights and of its odd ones, a byte each.
__device__ __forceinline__ uint32_t joined_nibbles(uint32_t high, uint32_t low) {
  uint32_t codes;  // high & mask | low & ~mask
  asm("lop3.b32 %0, %1, %2, %3, 0xE4;" : "=r"(codes) : "r"(high), "r"(low), "r"(0xF0F0F0F0));
  return codes;
}

// The number of the highest bit of what is not 0, in one instruction.
__device__ __forceinline__ int highest_bit(uint32_t bits) {
  int highest;
  asm("bfind.u32 %0, %1;" : "=r"(highest) : "r"(bits));
  return highest;
}

// Two weights, of bytes number `which` of `even` and of `odd`. Upper halves of fp32 numbers are
// subtracted side by side: no sub-cell is empty, so the lower ones never borrow.
template <class Table>
__device__ __forceinline__ void find_pair(const uint8_t* table, uint32_t even, uint32_t odd,
                                          int which, float scale, uint32_t part, uint32_t* first,
                                          int* low, int* high) {
  uint32_t inner[2], outer[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const Edges edges = Table::at(table, i == 0 ? even : odd, which, part);
    inner[i] = __float_as_uint(__fmul_rn(edges.inner, scale)) + 0xFFFF;
    outer[i] = __float_as_uint(__fmul_rn(edges.outer, scale));
  }
  *first = __byte_perm(inner[0], inner[1], 0x7632);
  const uint32_t spare = __byte_perm(outer[0], outer[1], 0x7632) - *first;
  const uint32_t doubled = spare * 2 + 0x10001;  // as many bits as twice a remainder and one have
  *low = highest_bit(doubled & 0xFFFF);
  *high = highest_bit(doubled);
}

// Where the scale is a good one. `left`: weights from the first on, 16 and more if `whole`; what
// lies beyond has no remainder.
template <class Table, bool whole>
__device__ __forceinline__ void find_sixteen(const uint8_t* table, const uint32_t* index,
                                             const uint32_t* deviation, float scale, uint32_t part,
                                             int left, Sixteen* of) {
  int bits = -16 * kSixteen / 2;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const uint32_t even = joined_nibbles(index[half] << 4, deviation[half]);
    const uint32_t odd = joined_nibbles(index[half], deviation[half] >> 4);
#pragma unroll
    for (int pair = 0; pair < 4; pair++) {
      int* const low = &of->low[half][pair];
      int* const high = &of->high[half][pair];
      find_pair<Table>(table, even, odd, pair, scale, part, &of->first[half][pair], low, high);
      const int column = kOctet * half + 2 * pair;
      if (!whole && column >= left) *low = 0;
      if (!whole && column + 1 >= left) *high = 16;
      bits = bits + *low + *high;
    }
  }
  of->bits = bits;
}

// The bits of all remainders, kNoBlock if the scale word is none. `bias`: (112 + exponent) << 23.
template <class Table, bool whole, int sixteens>
__device__ __forceinline__ int find_strip(const uint8_t* table, const StripCodes<sixteens>& codes,
                                          uint32_t bias, int lane, int left,
                                          Sixteen (&of)[sixteens]) {
  const uint32_t sign = codes.word << 16 & 0x80000000u;
  const float scale = __uint_as_float(((codes.word & 0x7FF8) << kWordShift) + bias | sign);
  const uint32_t part = Table::part(codes.word & kBendMask, lane);
  int bits = 0;
#pragma unroll
  for (int i = 0; i < sixteens; i++) {
    find_sixteen<Table, whole>(table, codes.index + 2 * i, codes.deviation + 2 * i, scale, part,
                               left - kSixteen * i, &of[i]);
    bits += of[i].bits;
  }
  const bool good = (codes.word & 0x7C00) - 0x400 <= 0x7400;
  return good ? bits : kNoBlock;
}

}  // namespace phiquant::cuda
