// A warp's part of a product with an exact weight: what it decodes in registers is multiplied
// there, by tensor operations of 16 rows of weights, 8 rows of x and 16 columns.
#pragma once

#include "product_x.cuh"

namespace phiquant::cuda {

// sums += a . b: 16 rows of a, lane / 4 and 8 more, times 8 rows of b, of the same lanes; a lane
// has {rows lane / 4, and 8 more} x {row 2 (lane % 4), and the next}. `upper` and `lower`: of a.
__device__ __forceinline__ void multiply(float (&sums)[4], const uint32_t* upper,
                                         const uint32_t* lower, const uint32_t* b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(upper[0]), "r"(lower[0]), "r"(upper[1]), "r"(lower[1]), "r"(b[0]), "r"(b[1]));
}

struct ProductPlace {
  int tile, block;
};

// Of 4, 8 or 16 rows of x. A lane has two runs of 16 columns, whose sums are apart until the end:
// they are the same however many rows there are. With 4 rows both runs are multiplied at once: the
// later one's weights are the lower rows, and x has two rows for each run, of which the sums with
// the other run's weights are left. With 8 nothing is in the lower rows; 16 rows of x are the 16.
template <int rows, XPlace from>
struct Multiplier {
  using X = RowsOfX<rows, from>;
  static constexpr bool kBoth = rows == 4, kAcross = rows == 16;
  static constexpr int kRuns = X::kRuns;
  static constexpr bool kTouches = X::kPastL1;         // there is room in the L1 cache
  static constexpr int kSums = rows * TileCut::kRows;  // of a tile

  const ProductTask& task;
  const StripShape& shape;
  const TileCut& cut;
  int lane, warp;
  float* partial;  // warp w leaves its sums of tile t at w + t
  const X& x;
  float sums[kRuns][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kRuns * 4; i++) sums[i / 4][i % 4] = 0;
  }

  __device__ __forceinline__ int row_of(const ProductPlace& place) const {
    const int64_t row = cut.first_row(place.tile) + lane / 4;
    return static_cast<int>(min(row, task.out_features - 1));
  }
  __device__ __forceinline__ void advance(ProductPlace* place) const {
    if (++place->block < shape.blocks) return;
    *place = {place->tile + 1, 0};
  }

  using Rows = typename X::Sixteens;
  // Where there are registers for it.
  static constexpr bool kEarly = kBoth && from == XPlace::kAligned;
  template <bool whole>
  __device__ __forceinline__ Rows before(int column) const {
    if constexpr (kEarly && whole) return x.template load<whole>(0, column, 0);
    return {};
  }

  template <bool whole>
  __device__ __forceinline__ void strip(const ProductPlace&, int column, int,
                                        const uint32_t (&pairs)[2][2][4], Rows& asked) {
#pragma unroll
    for (int run = 0; run < kRuns; run++) {
      if constexpr (!(kEarly && whole)) asked = x.template load<whole>(0, column, run);
      Rows more;
      if constexpr (kAcross) more = x.template load<whole>(1, column, run);
#pragma unroll
      for (int i = 0; i < kOctet; i += 2) {
        constexpr uint32_t kNothing[2] = {0, 0};
        const uint32_t* const of = pairs[run][i / 4] + i % 4;
        if constexpr (kBoth) {
          multiply(sums[run], of, pairs[1][i / 4] + i % 4, asked.of + i);
        } else if constexpr (kAcross) {
          multiply(sums[run], asked.of + i, more.of + i, of);
        } else {
          multiply(sums[run], of, kNothing, asked.of + i);
        }
      }
    }
  }

  // Of the tile, too, or of what this warp has of it.
  __device__ __forceinline__ void ended(const ProductPlace& place, const ProductPlace& next,
                                        bool last) {
    if (!last && next.tile == place.tile) return;
    float* const to = partial + (warp + place.tile) * kSums;
    const int mine = lane / 4, first = (lane & 3) * 2;
    if constexpr (kBoth) {
      to[mine * rows + first / 2] = sums[0][0] + sums[0][3];
    } else {
#pragma unroll
      for (int i = 0; i < 2 * X::kEights; i++) {
        const int at =
            kAcross ? (first + i % 2) * rows + mine + i / 2 * 8 : mine * rows + first + i;
        to[at] = sums[0][i] + sums[1][i];
      }
    }
    clear();
  }
};

}  // namespace phiquant::cuda
