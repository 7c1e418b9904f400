// How planes are cut (phiquant/codec/layout.py), and what a scale word holds. Torch-free; shared by
// the CPU and the CUDA kernels.
#pragma once

#include <cstdint>

// Functions of shared headers are always inlined: a copy compiled for one instruction set must
// never be the one that the linker keeps for all.
#if defined(__CUDACC__)
#define PHIQUANT_INLINE static __host__ __device__ __forceinline__
#else
#define PHIQUANT_INLINE static inline __attribute__((always_inline))
#endif

// The same for members.
#define PHIQUANT_MEMBER inline __attribute__((always_inline))

namespace phiquant {

enum class GridName : int32_t { kPhi, kGolden };

inline constexpr int kLargestGroup = 128;
inline constexpr int kLargestExponent = 112;
inline constexpr int kBlock = 512;          // weights whose remainders begin at a byte of their own
inline constexpr int kBlocksPerStart = 32;  // but in views, which have a start for every block
inline constexpr int kPadding = 8;          // bytes after the last block's

// Checked by whoever fills it: columns >= 1, index_bits 2..6, deviation_bits 0, 2, 4 or 8,
// group_size 32, 64 or 128, exponent -112..112.
struct Layout {
  int64_t columns;
  int32_t index_bits;
  int32_t deviation_bits;
  int32_t group_size;
  GridName grid;
  int32_t exponent;
};

PHIQUANT_INLINE int64_t groups_of(const Layout& layout) {
  return (layout.columns + layout.group_size - 1) / layout.group_size;
}
PHIQUANT_INLINE int64_t blocks_of(const Layout& layout) {
  return (layout.columns + kBlock - 1) / kBlock;
}
PHIQUANT_INLINE int half_of(const Layout& layout) { return 1 << (layout.index_bits - 1); }
PHIQUANT_INLINE int high_bits(const Layout& layout) {
  return layout.deviation_bits < 4 ? layout.deviation_bits : 4;
}
PHIQUANT_INLINE int low_bits(const Layout& layout) {
  return layout.deviation_bits - high_bits(layout);
}
PHIQUANT_INLINE int code_bits(const Layout& layout) {
  return layout.index_bits + layout.deviation_bits;
}
// The code of the sub-cell that begins at position 0; there is one if there is a deviation.
PHIQUANT_INLINE int zero_code_of(const Layout& layout) {
  return ((2 * half_of(layout) - 1) << layout.deviation_bits) / 2;
}
PHIQUANT_INLINE int group_bytes(const Layout& layout, int bits) {
  return layout.group_size * bits / 8;
}
PHIQUANT_INLINE int64_t row_bytes(const Layout& layout, int bits) {
  return groups_of(layout) * group_bytes(layout, bits);
}
PHIQUANT_INLINE int bend_count(const Layout& layout) {
  return layout.grid == GridName::kPhi ? 8 : 1;
}

// Scale words: fp16 bits whose 3 lowest hold the bend. As an fp32 the scale is those bits moved up
// by 13 with the exponent re-biased by 112, then times a power of two: exact.
inline constexpr uint32_t kBendMask = 7;
inline constexpr int kWordShift = 13;
inline constexpr uint32_t kWordBias = 112u << 23;

}  // namespace phiquant
