// Eight weights side by side, an octet: as many bytes of a plane as it has bits a weight. Groups
// are multiples of octets, so the octets of all rows lie one after the other in every plane.
#pragma once

#include "kernels.h"

namespace phiquant::cuda {

inline constexpr int kOctet = 8;

__device__ __forceinline__ int64_t octets_of(const Layout& layout) {
  return groups_of(layout) * (layout.group_size / kOctet);
}

// Octets of a group, as a power of two.
__device__ __forceinline__ int octets_shift(const Layout& layout) {
  return __ffs(layout.group_size) - 4;
}

// Eight codes of `bits` bits, at any address.
__device__ __forceinline__ uint64_t packed_octet(const uint8_t* plane, int64_t octet, int bits) {
  uint64_t packed = 0;
  for (int i = 0; i < bits; i++) {
    packed |= static_cast<uint64_t>(plane[octet * bits + i]) << 8 * i;
  }
  return packed;
}

// Whole codes: the index with all deviation bits below it.
__device__ __forceinline__ void read_codes(const Layout& layout, const Planes& planes,
                                           int64_t octet, uint32_t (&codes)[kOctet]) {
  const int bits[3] = {layout.index_bits, high_bits(layout), low_bits(layout)};
  const uint8_t* const all[3] = {planes.index, planes.deviation, planes.deviation_low};
#pragma unroll
  for (int plane = 0; plane < 3; plane++) {
    if (bits[plane] == 0) break;
    const uint64_t packed = packed_octet(all[plane], octet, bits[plane]);
#pragma unroll
    for (int i = 0; i < kOctet; i++) {
      const uint32_t part =
          static_cast<uint32_t>(packed >> i * bits[plane]) & ((1u << bits[plane]) - 1);
      codes[i] = plane == 0 ? part : codes[i] << bits[plane] | part;
    }
  }
}

// The same of nibble indices with `deviation` bits, from one load a plane: planes are aligned to
// the bytes of an octet. About 2 instructions a weight.
template <int deviation>
__device__ __forceinline__ void read_nibbles(const Planes& planes, int64_t octet,
                                             uint32_t (&codes)[kOctet]) {
  const uint32_t index = __ldcs(reinterpret_cast<const uint32_t*>(planes.index) + octet);
  uint32_t high = 0, low = 0;
  if constexpr (deviation == 2)
    high = __ldcs(reinterpret_cast<const uint16_t*>(planes.deviation) + octet);
  if constexpr (deviation >= 4)
    high = __ldcs(reinterpret_cast<const uint32_t*>(planes.deviation) + octet);
  if constexpr (deviation == 8)
    low = __ldcs(reinterpret_cast<const uint32_t*>(planes.deviation_low) + octet);
#pragma unroll
  for (int i = 0; i < kOctet; i++) {
    uint32_t code = index >> 4 * i & 15;
    if constexpr (deviation == 2) code = code << 2 | (high >> 2 * i & 3);
    if constexpr (deviation >= 4) code = code << 4 | (high >> 4 * i & 15);
    if constexpr (deviation == 8) code = code << 4 | (low >> 4 * i & 15);
    codes[i] = code;
  }
}

// Whether every octet of these planes is aligned for read_nibbles.
inline bool has_nibbles(const Layout& layout, const Planes& planes) {
  const auto at = [](const void* plane) { return reinterpret_cast<uintptr_t>(plane); };
  const uintptr_t deviation = at(planes.deviation) & (layout.deviation_bits == 2 ? 1 : 3);
  return layout.index_bits == 4 && layout.grid == GridName::kPhi && deviation == 0 &&
         ((at(planes.index) | at(planes.deviation_low)) & 3) == 0;
}

}  // namespace phiquant::cuda
