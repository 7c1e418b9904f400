// Codes of one row and step, 64 columns, to weights in shared memory as tensor cores read them
// there: a thread a row, 8 columns at a time.
//
// Counted instructions a weight: 2.6 without a deviation, which look up two bytes, and 1 for the
// table; with one 1 to join codes, 2 to make a position, 3 to make a weight of it, 1/2 to round
// pairs.
#pragma once

#include "many_rows_tile.cuh"

namespace phiquant::cuda {

__device__ __forceinline__ void store_words(uint32_t address, const uint4& words) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(words.x),
               "r"(words.y), "r"(words.z), "r"(words.w)
               : "memory");
}

// Word i of some; i is known when this is compiled.
__device__ __forceinline__ uint32_t word_of(const uint4* of, int i) {
  const uint4& four = of[i / 4];
  return i % 4 == 0 ? four.x : i % 4 == 1 ? four.y : i % 4 == 2 ? four.z : four.w;
}

__device__ __forceinline__ uint4 shared_words(uint32_t address) {
  uint4 words;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "r"(address)
               : "memory");
  return words;
}

// What codes of a row and group are decoded with.
template <class T, int deviation>
struct RowLevels {
  Curve curve;

  __device__ __forceinline__ explicit RowLevels(const Curve& curve) : curve(curve.scaled()) {}
};
template <class T>
struct RowLevels<T, 0> {
  LevelTable table;

  __device__ __forceinline__ explicit RowLevels(const Curve& curve)
      : table(curve.template table<T>()) {}
};

template <int deviation>
struct RowCodes {
  uint4 index[2], high[2];

  // Row `row` of a warp's; halves of 32 bytes are swapped in every other four rows.
  __device__ __forceinline__ void load(uint32_t codes, uint32_t row) {
    using Codes = WarpCodes<deviation>;
    const uint32_t half = (row & 4) << 2, index_at = codes + row * 32,
                   high_at = codes + sizeof(Codes::index);
    index[0] = shared_words(index_at + half);
    index[1] = shared_words(index_at + (half ^ 16));
    if constexpr (deviation == 2) high[0] = shared_words(high_at + row * 16);
    if constexpr (deviation == 4) {
      high[0] = shared_words(high_at + row * 32 + half);
      high[1] = shared_words(high_at + row * 32 + (half ^ 16));
    }
  }

  // Deviations of 8 columns, as `joined` takes them.
  __device__ __forceinline__ uint32_t high_codes(int eight) const {
    if constexpr (deviation == 4) return word_of(high, eight);
    const uint32_t sixteen = word_of(high, eight / 2);
    return __byte_perm(sixteen, sixteen >> 4, eight % 2 == 0 ? 0x5140 : 0x7362);
  }

  template <class T>
  __device__ __forceinline__ uint4 weights(const RowLevels<T, deviation>& levels, uint32_t magic,
                                           int eight) const {
    const uint32_t codes = word_of(index, eight);
    uint4 weights;
    if constexpr (deviation == 0) {
      levels.table.look_up(codes, &weights.x, &weights.y, &weights.z, &weights.w);
    } else {
      const CodeBytes bytes = joined<deviation>(codes, high_codes(eight));
      weights = {weight_pair<T, 0>(levels.curve, bytes, magic),
                 weight_pair<T, 1>(levels.curve, bytes, magic),
                 weight_pair<T, 2>(levels.curve, bytes, magic),
                 weight_pair<T, 3>(levels.curve, bytes, magic)};
    }
    return weights;
  }
};

}  // namespace phiquant::cuda
