// Codes of one group in bytes, and their planes: least significant bit first.
#pragma once

#include "vector.h"

namespace phiquant::cpu::PHIQUANT_ISA {

typedef uint8_t vb16 __attribute__((vector_size(16)));

// Eight codes of `bits` bits, side by side, to eight bytes: halves move apart three times.
template <int bits>
PHIQUANT_INLINE uint64_t spread(uint64_t packed) {
  constexpr uint64_t four = (uint64_t{1} << 4 * bits) - 1;
  constexpr uint64_t two = ((uint64_t{1} << 2 * bits) - 1) * 0x100000001u;
  constexpr uint64_t one = ((uint64_t{1} << bits) - 1) * 0x1000100010001u;
  packed = (packed & four) | (packed >> 4 * bits & four) << 32;
  packed = (packed & two) | (packed >> 2 * bits & two) << 16;
  return (packed & one) | (packed >> bits & one) << 8;
}

// The inverse of spread.
template <int bits>
PHIQUANT_INLINE uint64_t gather(uint64_t bytes) {
  constexpr uint64_t one = ((uint64_t{1} << bits) - 1) * 0x1000100010001u;
  constexpr uint64_t two = ((uint64_t{1} << 2 * bits) - 1) * 0x100000001u;
  constexpr uint64_t four = (uint64_t{1} << 4 * bits) - 1;
  bytes = (bytes & one) | (bytes >> 8 & one) << bits;
  bytes = (bytes & two) | (bytes >> 16 & two) << 2 * bits;
  return (bytes & four) | (bytes >> 32 & four) << 4 * bits;
}

// Nibbles to bytes, 32 at a time.
PHIQUANT_INLINE void unpack_nibbles(const uint8_t* plane, int count, uint8_t* codes) {
  for (int i = 0; i < count; i += 32) {
    const vb16 packed = load<vb16>(plane + i / 2);
    const vb16 even = packed & 15, odd = packed >> 4;
    store(codes + i, __builtin_shufflevector(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6,
                                             22, 7, 23));
    store(codes + i + 16, __builtin_shufflevector(even, odd, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28,
                                                  13, 29, 14, 30, 15, 31));
  }
}

template <int bits>
PHIQUANT_INLINE void unpack(const uint8_t* plane, int count, uint8_t* codes) {
  if constexpr (bits == 4) return unpack_nibbles(plane, count, codes);
  for (int i = 0; i < count; i += 8) {
    uint64_t packed = 0;
    std::memcpy(&packed, plane + i / 8 * bits, bits);
    packed = spread<bits>(packed);
    std::memcpy(codes + i, &packed, 8);
  }
}

// Bytes below 16 to nibbles, 32 at a time.
PHIQUANT_INLINE void pack_nibbles(const uint8_t* codes, int count, uint8_t* plane) {
  for (int i = 0; i < count; i += 32) {
    const vb16 low = load<vb16>(codes + i), high = load<vb16>(codes + i + 16);
    const vb16 even = __builtin_shufflevector(low, high, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22,
                                              24, 26, 28, 30);
    const vb16 odd = __builtin_shufflevector(low, high, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23,
                                             25, 27, 29, 31);
    store(plane + i / 2, even | odd << 4);
  }
}

template <int bits>
PHIQUANT_INLINE void pack(const uint8_t* codes, int count, uint8_t* plane) {
  if constexpr (bits == 4) return pack_nibbles(codes, count, plane);
  for (int i = 0; i < count; i += 8) {
    uint64_t bytes;
    std::memcpy(&bytes, codes + i, 8);
    bytes = gather<bits>(bytes);
    std::memcpy(plane + i / 8 * bits, &bytes, bits);
  }
}

PHIQUANT_INLINE void unpack(int bits, const uint8_t* plane, int count, uint8_t* codes) {
  switch (bits) {
    case 2:
      return unpack<2>(plane, count, codes);
    case 3:
      return unpack<3>(plane, count, codes);
    case 4:
      return unpack<4>(plane, count, codes);
    case 5:
      return unpack<5>(plane, count, codes);
    default:
      return unpack<6>(plane, count, codes);
  }
}

PHIQUANT_INLINE void pack(int bits, const uint8_t* codes, int count, uint8_t* plane) {
  switch (bits) {
    case 2:
      return pack<2>(codes, count, plane);
    case 3:
      return pack<3>(codes, count, plane);
    case 4:
      return pack<4>(codes, count, plane);
    case 5:
      return pack<5>(codes, count, plane);
    default:
      return pack<6>(codes, count, plane);
  }
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
