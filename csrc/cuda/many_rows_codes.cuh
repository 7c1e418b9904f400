// Codes in shared memory to weights in registers, as Hopper's tensor cores take them: of 64 columns
// and two rows a lane.
//
// A lane of four needs columns 2 t, 2 t + 1 of every 8: byte t of every word of indices. Bytes of
// four words, 8 weights of a row, are gathered first. Instructions a weight: without a deviation 3,
// which look up two bytes; with one 1.25 to gather and join codes, 2 to make a position, 3 to make
// a weight of it, 1/2 to round pairs.
#pragma once

#include "many_rows_tile.cuh"

namespace phiquant::cuda {

__device__ __forceinline__ uint4 shared_words(uint32_t address) {
  uint4 words;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "r"(address));
  return words;
}

// Where a lane finds row r of its two, r and r + 8, in a stage.
struct LaneCodes {
  uint32_t row;
  uint32_t flip;   // 16 where halves of rows of 32 bytes are swapped
  uint32_t pick;   // bytes t of two words
  uint32_t shift;  // to nibble t

  __device__ __forceinline__ LaneCodes(int row, int lane)
      : row(static_cast<uint32_t>(row)),
        flip(static_cast<uint32_t>(row & 4) << 2),
        pick((static_cast<uint32_t>(lane) & 3) * 0x11 + 0x40),
        shift((static_cast<uint32_t>(lane) & 3) * 4) {}

  // Byte t of each of four words.
  __device__ __forceinline__ uint32_t gathered(const uint4& words) const {
    return __byte_perm(__byte_perm(words.x, words.y, pick), __byte_perm(words.z, words.w, pick),
                       0x5410);
  }
};

// All that a lane reads of one row and step.
template <int deviation>
struct RowCodes {
  uint4 index[2], high[2], levels[2];

  template <class Stage>
  __device__ __forceinline__ void load(const LaneCodes& lane, uint32_t stage, uint32_t row) {
    const uint32_t half = lane.flip, other = lane.flip ^ 16;
    const uint32_t index_at = stage + offsetof(Stage, index),
                   high_at = stage + offsetof(Stage, high),
                   levels_at = stage + offsetof(Stage, levels);
    index[0] = shared_words(index_at + row * 32 + half);
    index[1] = shared_words(index_at + row * 32 + other);
    if constexpr (deviation == 0) {
      levels[0] = shared_words(levels_at + row * 32 + half);
      levels[1] = shared_words(levels_at + row * 32 + other);
    } else {
      levels[0] = shared_words(levels_at + row * 16);
    }
    if constexpr (deviation == 2) high[0] = shared_words(high_at + row * 16);
    if constexpr (deviation == 4) {
      high[0] = shared_words(high_at + row * 32 + half);
      high[1] = shared_words(high_at + row * 32 + other);
    }
  }

  // Deviations of a chunk of 32 columns, as `gathered` gives indices.
  template <int chunk>
  __device__ __forceinline__ uint32_t high_codes(const LaneCodes& lane) const {
    if constexpr (deviation == 2) {
      const uint32_t first = chunk == 0 ? high[0].x : high[0].z;
      const uint32_t second = chunk == 0 ? high[0].y : high[0].w;
      return __byte_perm(first >> lane.shift, second >> lane.shift, 0x6420);
    } else {
      return lane.gathered(high[chunk]);
    }
  }

  // A chunk to registers r and r + 2 of the operands of every 16 columns.
  template <class T, int chunk, int r>
  __device__ __forceinline__ void decode(const LaneCodes& lane, uint32_t magic,
                                         uint32_t (&to)[4][4]) const {
    const uint32_t codes = lane.gathered(index[chunk]);
    uint32_t* const first = to[2 * chunk];
    uint32_t* const second = to[2 * chunk + 1];
    if constexpr (deviation == 0) {
      const LevelTable table{levels[0], levels[1]};
      table.look_up(codes, first + r, first + r + 2, second + r, second + r + 2);
    } else {
      const CodeBytes bytes = joined<deviation>(codes, high_codes<chunk>(lane));
      const Curve curve{__uint_as_float(levels[0].x), __uint_as_float(levels[0].y), 1};
      first[r] = weight_pair<T, 0>(curve, bytes, magic);
      first[r + 2] = weight_pair<T, 1>(curve, bytes, magic);
      second[r] = weight_pair<T, 2>(curve, bytes, magic);
      second[r + 2] = weight_pair<T, 3>(curve, bytes, magic);
    }
  }
};

}  // namespace phiquant::cuda
