// What a block of many_rows_kernel.cuh keeps in shared memory, and which units it takes.
#pragma once

#include "many_rows_cut.h"
#include "many_rows_levels.cuh"
#include "turn.cuh"

namespace phiquant::cuda {

inline constexpr int kConsumers = 2;  // warpgroups that multiply, half of the tile's rows each
inline constexpr int kDecoders = 2;   // warpgroups that decode, every other unit
inline constexpr int kConsumerRows = kPanelRows / kConsumers;
inline constexpr int kTileThreads = 128 * (kConsumers + kDecoders);
// Rows of x that one product takes: the compiler wants its sums to fit into the registers that
// every thread begins with, 128.
constexpr int product_of(int wide) { return wide == 256 ? 128 : wide; }
inline constexpr int kOutRows = 64;   // of the result that are put together at a time
inline constexpr int kRoom = 232448;  // bytes that a block of a Hopper GPU can have

// Bytes of a row and step of the plane of `bits` bits.
constexpr int plane_bytes(int bits) { return kStepColumns * bits / 8; }

// What a warp decodes next, of 32 rows; of 32 bytes as copies swizzle them.
template <int deviation>
struct WarpCodes {
  uint8_t index[32 * plane_bytes(4)];
  uint8_t high[32 * plane_bytes(deviation)];
};
template <>
struct WarpCodes<0> {
  uint8_t index[32 * plane_bytes(4)];
};

template <int deviation, int wide>
struct TileShared {
  static constexpr int kSlots = wide > 128 ? 2 : 4;
  static constexpr int kWeightStages = wide == 256 && deviation > 0 ? 3 : 4;
  static constexpr int kWeightBytes = kPanelRows * kStepColumns * 2;
  static constexpr int kRest = kConsumers * kOutRows * kConsumerRows * 2 +
                               kDecoders * 4 * kSlots * sizeof(WarpCodes<deviation>) +
                               kWeightStages * kWeightBytes + 1024;
  static constexpr int kMost = (kRoom - kRest) / (wide * kStepColumns * 2);
  static constexpr int kStages = kMost < 6 ? kMost : 6;

  // Rows of 128 bytes, swizzled: of x, and of the weight.
  alignas(1024) uint8_t x[kStages][wide * kStepColumns * 2];
  uint8_t weights[kWeightStages][kWeightBytes];
  uint8_t out[kConsumers][kOutRows * kConsumerRows * 2];
  WarpCodes<deviation> codes[kDecoders * 4][kSlots];
  uint64_t full[kStages], empty[kStages];  // of x
  uint64_t weights_full[kWeightStages], weights_empty[kWeightStages];
  uint64_t codes_full[kDecoders * 4][kSlots];
  Bend bends[kBendCount];
  unsigned before[kConsumers];  // how many had left their sums of a tile
};

// What a kernel is told apart from its maps.
struct TileTask {
  Layout layout;
  const uint16_t* scale;
  const void* bias;
  void* out;
  int64_t out_features, m;
  int steps;          // of 64 columns
  int step_shift;     // steps of a group, as a power of two
  int groups;         // of a row
  int wide_tiles;     // over the rows of x
  int grain;          // units that are given out together
  int share, longer;  // grains of a pair of blocks, and how many pairs take one more
  float4* partial;    // sums of shared tiles, two tiles a block
  unsigned* arrived;  // how many have left theirs, of 64 rows of a tile; zeros
  bool aligned;       // whether 8 results of a row can be stored at once
  bool eight_words;   // whether rows of scale words begin at 16 bytes
  uint32_t magic;     // kMagic: if the compiler knew it, it would load every selector of bytes

  // The first pairs take one grain more than the others.
  __device__ __forceinline__ int first_unit(int pair) const {
    return (pair * share + min(pair, longer)) * grain;
  }
  // Where grains are units.
  __device__ __forceinline__ int pair_of(int unit) const {
    const int rest = unit - longer * (share + 1);
    return rest < 0 ? unit / (share + 1) : longer + rest / share;
  }
};

// Steps of one tile that a pair takes.
struct Segment {
  int tile, begin, end;
};

// Which units a block takes, with the other one of its pair.
struct BlockPlace {
  uint32_t rank;  // in its pair
  int pair, first, last;

  __device__ __forceinline__ static BlockPlace of(const TileTask& task, uint32_t rank) {
    const int pair = static_cast<int>(blockIdx.x) / kPair;
    return {rank, pair, task.first_unit(pair), task.first_unit(pair + 1)};
  }

  __device__ __forceinline__ Segment segment(const TileTask& task, int unit) const {
    const int tile = unit / task.steps, begin = unit - tile * task.steps;
    return {tile, begin, min(task.steps, begin + last - unit)};
  }

  // The tile's first row of the weight in this block, and of x.
  __device__ __forceinline__ int64_t weight_row(const TileTask& task, int tile) const {
    return (int64_t{tile / task.wide_tiles} * kPair + rank) * kPanelRows;
  }
  // These change first, so that codes come from memory once.
  __device__ __forceinline__ static int64_t x_row(const TileTask& task, int tile, int wide) {
    return int64_t{tile % task.wide_tiles} * wide;
  }
};

// A word that nobody writes, with the rest of its 128 bytes to the L2 cache.
__device__ __forceinline__ uint32_t load_word(const uint16_t* from) {
  uint16_t word;
  asm volatile("ld.global.nc.L2::128B.u16 %0, [%1];" : "=h"(word) : "l"(from));
  return word;
}
// Eight, at 16 bytes.
__device__ __forceinline__ uint4 load_words(const uint16_t* from) {
  uint4 words;
  asm volatile("ld.global.nc.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(from));
  return words;
}

}  // namespace phiquant::cuda
