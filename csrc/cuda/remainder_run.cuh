// What one lane makes of 16 weights side by side when their remainders are encoded.
#pragma once

#include "exact_run.cuh"
#include "remainder.h"

namespace phiquant::cuda {

// A weight's bits, from which its rank in a sub-cell is a subtraction.
template <Dtype stored>
struct StoredBits {
  using Type = uint16_t;
};
template <>
struct StoredBits<Dtype::kFloat32> {
  using Type = uint32_t;
};

// Weights at any alignment of their own; 0 from `count` on.
template <class Bits>
__device__ __forceinline__ void load_bits(const Bits* from, int count, uint32_t (&bits)[kRun]) {
  constexpr int kVector = 16 / sizeof(Bits);
  if (count == kRun && (reinterpret_cast<uintptr_t>(from) & 15) == 0) {
#pragma unroll
    for (int i = 0; i < kRun; i += kVector) {
      const uint4 four = __ldcs(reinterpret_cast<const uint4*>(from + i));
      const uint32_t words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int j = 0; j < kVector; j++) {
        bits[i + j] = sizeof(Bits) == 4 ? words[j] : words[j / 2] >> 16 * (j % 2) & 0xFFFF;
      }
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kRun; i++) bits[i] = i < count ? from[i] : 0;
}

// Where a block is in the weight: a warp takes it, a lane 16 weights.
struct Place {
  int64_t row;
  int64_t column;  // of this lane
  int count;       // of this lane's weights, 0 behind the end of the row
};

__device__ __forceinline__ Place place_of(const Layout& layout, int64_t block) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int64_t wide = blocks_of(layout), row = block / wide;
  const int64_t column = (block - row * wide) * kBlock + lane * kRun;
  const int64_t rest = layout.columns - column;
  return {row, column, static_cast<int>(max(int64_t{0}, min(rest, int64_t{kRun})))};
}

// One lane's remainders.
struct Rests {
  uint32_t rest[kRun];  // 0 where astray and from `count` on
  int width[kRun];
  uint32_t bits[kRun];  // of the weights
  uint32_t astray;      // a bit for each that is not one of its sub-cell's floats
  int total;            // of the widths
  bool good;            // the scale word is one
};

// A weight is astray if its rank is not within the `spare` that follow the first float of its
// sub-cell. Signs are above all ranks: with another sign the difference, as an unsigned number, is
// larger than any `spare`.
template <Dtype stored, bool nibbles>
__device__ __forceinline__ Rests rests_of(const RemainderTask& task, const Layout& layout,
                                          const GridTable& grid, const Place& place) {
  using Bits = typename StoredBits<stored>::Type;
  Rests run;
  run.astray = 0;
  run.total = 0;
  run.good = true;
  if (place.count == 0) return run;
  uint32_t first[kRun];
  int spare[kRun];
  const Bits* const weights =
      static_cast<const Bits*>(task.weight) + place.row * layout.columns + place.column;
  load_bits(weights, place.count, run.bits);
  const int64_t octet = place.row * octets_of(layout) + place.column / kOctet;
  run.good = read_subcells<stored, nibbles>(layout, task.planes, grid, octet, first, spare);
  run.total = widths_of(spare, place.count, run.width);
#pragma unroll
  for (int i = 0; i < kRun; i++) {
    run.rest[i] = run.bits[i] - first[i];
    const bool found = run.rest[i] <= static_cast<uint32_t>(spare[i]);
    run.rest[i] = found && i < place.count ? run.rest[i] : 0;
    run.astray |= static_cast<uint32_t>(!found && i < place.count) << i;
  }
  return run;
}

}  // namespace phiquant::cuda
