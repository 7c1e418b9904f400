// What one lane reads of an exact weight's block: 16 weights side by side.
#pragma once

#include "octets.cuh"
#include "remainders.cuh"
#include "subcells.cuh"

namespace phiquant::cuda {

// The sub-cells of one lane's 16 weights: the ranks of their first floats with the sign of the
// weight in the highest bit of `stored`, and how many floats follow; false if the scale word is
// none.
template <Dtype stored, bool nibbles>
__device__ __forceinline__ bool read_subcells(const Layout& layout, const Planes& planes,
                                              const GridTable& grid, int64_t octet,
                                              uint32_t (&first)[kRun], int (&spare)[kRun]) {
  constexpr int kZeroCode = 120;  // of 4 + 4 bits
  constexpr uint32_t kSign = stored == Dtype::kFloat32 ? 0x80000000u : 0x8000u;
  const uint32_t word = planes.scale[octet >> octets_shift(layout)];
  const Scale scale = scale_of(layout, word, power_of_two(layout.exponent));
  const uint32_t turned = scale.value < 0 ? kSign : 0;
  const float size = fabsf(scale.value);
  const Bend bend = grid.bends[scale.bend];  // of the phi-grid
#pragma unroll
  for (int half = 0; half < kRun / kOctet; half++) {
    uint32_t codes[kOctet];
    if constexpr (nibbles) {
      read_nibbles<4>(planes, octet + half, codes);
    } else {
      read_codes(layout, planes, octet + half, codes);
    }
#pragma unroll
    for (int j = 0; j < kOctet; j++) {
      const int i = half * kOctet + j;
      Subcell cell;
      uint32_t below;
      if constexpr (nibbles && stored == Dtype::kBFloat16) {
        const int place = static_cast<int>(codes[j]) - kZeroCode;
        cell = brain_subcell(bend, place, 255 - kZeroCode, size);
        below = static_cast<uint32_t>(place >> 31) & kSign;
      } else {
        const Side side = side_of(layout, codes[j]);
        cell = subcell_of<stored>(layout, grid, scale.bend, side, size);
        below = side.below ? kSign : 0;
      }
      first[i] = cell.first + (below ^ turned);
      spare[i] = cell.spare;
    }
  }
  return !isnan(size);
}

// The widths of remainders in these sub-cells, 0 from `count` on; returns their sum.
__device__ __forceinline__ int widths_of(const int (&spare)[kRun], int count, int (&width)[kRun]) {
#pragma unroll
  for (int i = 0; i < kRun; i++) width[i] = bit_length(spare[i]);
  if (count < kRun) {
#pragma unroll
    for (int i = 0; i < kRun; i++) width[i] = i < count ? width[i] : 0;
  }
  int total = 0;
#pragma unroll
  for (int i = 0; i < kRun; i++) total += width[i];
  return total;
}

// What decoding wants of one lane's 16 weights: first floats as above, widths and their sum.
template <Dtype stored, bool nibbles>
__device__ __forceinline__ int read_run(const Layout& layout, const Planes& planes,
                                        const GridTable& grid, int64_t octet, int count,
                                        uint32_t (&first)[kRun], int (&width)[kRun]) {
  int spare[kRun];
  const bool good = read_subcells<stored, nibbles>(layout, planes, grid, octet, first, spare);
  const int total = widths_of(spare, count, width);
  return good ? total : kNoBits;
}

// What is known when a kernel of nibbles on the phi-grid is compiled.
template <bool nibbles>
__device__ __forceinline__ Layout known(Layout layout) {
  if constexpr (nibbles) {
    layout.index_bits = 4;
    layout.deviation_bits = 4;
    layout.grid = GridName::kPhi;
  }
  return layout;
}

}  // namespace phiquant::cuda
