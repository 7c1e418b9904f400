// The exception plane on the CPU (phiquant/codec/exceptions.py): weights that no sub-cell holds.
#pragma once

#include <cmath>
#include <cstring>

#include "../cpu/kernels.h"
#include "arguments.h"

namespace phiquant::cpu {

// `count` pairs of places in the flat weight, ascending, and fp32 bits.
struct Exceptions {
  const int64_t* pairs = nullptr;
  int64_t count = 0;
};

// Fails unless the places ascend from 0 and the bits are 32.
inline Exceptions exceptions_of(const CheckedPlanes& planes) {
  if (!planes.exceptions.has_value()) return {};
  const Exceptions all{static_cast<const int64_t*>(planes.exceptions->const_data_ptr()),
                       planes.exceptions->sizes()[0]};
  int64_t before = 0;
  for (int64_t i = 0; i < all.count; i++) {
    const int64_t place = all.pairs[2 * i], bits = all.pairs[2 * i + 1];
    if (place < before || bits < 0 || bits >> 32 != 0) {
      fail("exceptions: expected ascending places and 32 bits for each; they are corrupt");
    }
    before = place;
  }
  return all;
}

// The fp32 bits of a 16-bit float, by integers, so that NaNs keep theirs.
inline uint32_t widened_bits(Dtype dtype, uint32_t bits) {
  if (dtype == Dtype::kFloat32) return bits;
  if (dtype == Dtype::kBFloat16) return bits << 16;
  const uint32_t sign = (bits & 0x8000) << 16, magnitude = bits & 0x7FFF;
  if (magnitude >= 0x7C00) return sign | 0x7F800000 | (bits & 0x3FF) << 13;
  const float value =
      std::ldexp(static_cast<float>(magnitude < 0x400 ? magnitude : (magnitude & 0x3FF) | 0x400),
                 magnitude < 0x400 ? -24 : static_cast<int>(magnitude >> 10) - 25);
  uint32_t wide;
  std::memcpy(&wide, &value, sizeof wide);
  return sign | wide;
}

// fp32 bits to a 16-bit float: rounded to nearest even and saturated; a NaN stays one.
inline uint16_t narrowed_bits(Dtype dtype, uint32_t bits) {
  const bool brain = dtype == Dtype::kBFloat16;
  const uint32_t shift = brain ? 16 : 13, infinity = brain ? 0x7F80 : 0x7C00;
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
  if (magnitude >= 0x7F800000) {
    const uint32_t payload = (magnitude & 0x7FFFFF) >> shift;
    const bool lost = payload == 0 && magnitude > 0x7F800000;
    return static_cast<uint16_t>(sign | infinity |
                                 (lost ? (infinity & (0 - infinity)) >> 1 : payload));
  }
  uint32_t rounded;
  if (brain) {
    rounded = (magnitude + 0x7FFF + (magnitude >> 16 & 1)) >> 16;
  } else if (magnitude < 0x38800000) {  // below 2^-14: in steps of 2^-24
    float value;
    std::memcpy(&value, &magnitude, sizeof value);
    rounded = static_cast<uint32_t>(std::nearbyint(std::ldexp(static_cast<double>(value), 24)));
  } else {
    rounded = (magnitude - (112u << 23) + 0xFFF + (magnitude >> 13 & 1)) >> 13;
  }
  return static_cast<uint16_t>(sign | (rounded < infinity ? rounded : infinity - 1));
}

inline void put_exception(Dtype dtype, int64_t bits, void* out, int64_t place) {
  if (dtype == Dtype::kFloat32) {
    static_cast<uint32_t*>(out)[place] = static_cast<uint32_t>(bits);
  } else {
    static_cast<uint16_t*>(out)[place] = narrowed_bits(dtype, static_cast<uint32_t>(bits));
  }
}

// The number of the first exception whose place is not below `place`.
inline int64_t first_from(const Exceptions& all, int64_t place) {
  int64_t low = 0, high = all.count;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (all.pairs[2 * middle] < place) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Into the `rows` rows that `task` decoded; without task.rows they are those from `first` on.
inline void put_exceptions(const Exceptions& all, const DecodeTask& task, int64_t first,
                           int64_t rows) {
  if (all.count == 0) return;
  const int64_t columns = task.layout.columns;
  for (int64_t i = 0; i < rows; i++) {
    const int64_t begin = (task.rows == nullptr ? first + i : task.rows[i]) * columns;
    for (int64_t e = first_from(all, begin); e < all.count; e++) {
      const int64_t column = all.pairs[2 * e] - begin;
      if (column >= columns) break;
      put_exception(task.dtype, all.pairs[2 * e + 1], task.out, i * task.stride + column);
    }
  }
}

}  // namespace phiquant::cpu
