// The edges of sub-cells of bf16 weights with 4 index and 4 deviation bits on the phi-grid, in
// shared memory: a look-up and two products by the scale say all about a weight's sub-cell.
#pragma once

#include "grid.cuh"

namespace phiquant::cuda {

inline constexpr int kEdgeCodes = 256;
inline constexpr int kZeroCode = 120;  // its sub-cell begins at zero

// Edges of a sub-cell at scale 1, with the sign of their side; `inner` is nearer to zero.
struct Edges {
  float inner, outer;
};

// A bf16 weight's sub-cell begins at ceil(inner), above zero, and at floor(inner) + 1 below, and
// ends before ceil(outer), or before floor(outer) + 1 below and in the last sub-cell of all (in
// ranks; the edges are fp32 numbers, a bf16 number is every 2^16th of them). Levels that are one
// unit off instead of the exceptions make it ceil(inner * scale) and floor(outer * scale) + 1
// throughout. For all 2^18 pairs of a code and a scale's bend, mantissa and sign both
// then say the same floats as before (tests/cuda/test_decode.py tries all of them), and exponents
// do not matter as long as no edge is denormal or infinite.
__device__ __forceinline__ Edges edges_of(const Bend& bend, int code) {
  const bool below = code < kZeroCode, last = code == kEdgeCodes - 1;
  const int number = below ? kZeroCode - 1 - code : code - kZeroCode;
  const auto n = static_cast<float>(number);
  const uint32_t inner = __float_as_uint(bend.level(n)) + (below && number > 0 ? 1 : 0);
  const uint32_t outer = __float_as_uint(bend.level(n + 1.0f)) - (below || last ? 0 : 1);
  const uint32_t sign = below ? 0x80000000u : 0;
  return {__uint_as_float(inner | sign), __uint_as_float(outer | sign)};
}

// Exponents for which all edges are normal fp32 numbers: levels are above 2^-11 and below 2, scales
// between 2^(exponent - 14) and 2^(exponent + 16). Then no sub-cell is empty, and remainders have
// 15 bits at most.
inline constexpr int kLeastEdgeExponent = -100, kMostEdgeExponent = 110;

// [bend][code][copy] in shared memory; lanes read copies of their own as far as there is room, for
// lanes that read different words of a bank wait for each other: a half-warp has its 16 edges in 3
// steps on average if there is one copy, in 2 if there are 8.
template <int copies>
struct EdgeTable {
  static constexpr int kStride = copies * static_cast<int>(sizeof(Edges));  // of codes, in bytes
  static constexpr int kBytes = kBendCount * kEdgeCodes * kStride;

  // By all warps of the block; a barrier has to follow. 32 entries a warp and turn: every lane
  // makes one, and 16 bytes of all of their copies are written side by side.
  static __device__ __forceinline__ void fill(uint8_t* table, int warp, int warps, int lane) {
    constexpr int kLanes = copies / 2;  // that write an entry's copies
    for (int at = warp * 32; at < kBendCount * kEdgeCodes; at += warps * 32) {
      constexpr float kShrink = 1.0f / 128;  // positions count sub-cells, 16 a cell, 8 cells
      const int number = at / kEdgeCodes;
      const Bend bend{kDeviceLines.of[number] * kShrink,
                      kDeviceBends.of[number] * kShrink * kShrink * kShrink};
      const Edges mine = edges_of(bend, at % kEdgeCodes + lane);
#pragma unroll
      for (int turn = 0; turn < kLanes; turn++) {
        const int from = turn * (32 / kLanes) + lane / kLanes;
        const float inner = __shfl_sync(~0u, mine.inner, from);
        const float outer = __shfl_sync(~0u, mine.outer, from);
        reinterpret_cast<float4*>(table)[at * kLanes + turn * 32 + lane] = {inner, outer, inner,
                                                                            outer};
      }
    }
  }

  // Where this lane's copy of a bend's entries begins.
  static __device__ __forceinline__ uint32_t part(uint32_t bend, int lane) {
    return bend * (kEdgeCodes * kStride) + (lane % copies) * sizeof(Edges);
  }

  // The entry of byte `which` of `codes`: one instruction for the address.
  static __device__ __forceinline__ Edges at(const uint8_t* table, uint32_t codes, int which,
                                             uint32_t part) {
    const uint32_t offset = __dp4a(codes, uint32_t{kStride} << 8 * which, part);
    const float2 both = *reinterpret_cast<const float2*>(table + offset);
    return {both.x, both.y};
  }
};

}  // namespace phiquant::cuda
