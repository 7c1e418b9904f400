// One warp's arithmetic: 16 rows of a lossy weight by up to 8 rows of x, codes decoded in registers
// for the tensor cores.
//
// Lane 4 r + t has the codes of columns 16 t .. 16 t + 15 of every group, of rows r and r + 8. One
// mma.m16n8k16 multiplies 16 columns of all rows; its 8 columns are the rows of x, and where these
// are fewer, different groups, so that a group's sums come out apart, and each lane applies few
// scales.
#pragma once

#include "basis.cuh"
#include "grid.cuh"
#include "ring.cuh"

namespace phiquant::cuda {

struct Sums {
  float of[4];  // rows r, r, r + 8, r + 8; columns 2 t, 2 t + 1
};

__device__ __forceinline__ void multiply_add(Sums* sums, uint32_t a0, uint32_t a1, uint32_t a2,
                                             uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sums->of[0]), "+f"(sums->of[1]), "+f"(sums->of[2]), "+f"(sums->of[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Pairs of rows r and r + 8 with 8 columns of x.
__device__ __forceinline__ void multiply_add(Sums* sums, const __half2 (&upper)[4],
                                             const __half2 (&lower)[4], const uint4& x) {
  multiply_add(sums, bits_of(upper[0]), bits_of(lower[0]), bits_of(upper[1]), bits_of(lower[1]),
               x.x, x.y);
  multiply_add(sums, bits_of(upper[2]), bits_of(lower[2]), bits_of(upper[3]), bits_of(lower[3]),
               x.z, x.w);
}

template <int deviation>
__device__ __forceinline__ void multiply_octet(uint32_t upper_index, uint32_t upper_high,
                                               uint32_t upper_low, uint32_t lower_index,
                                               uint32_t lower_high, uint32_t lower_low,
                                               const uint4& x, Sums* linear, Sums* cubic) {
  Basis upper, lower;
  make_basis<deviation>(upper_index, upper_high, &upper);
  make_basis<deviation>(lower_index, lower_high, &lower);
  multiply_add(linear, upper.p, lower.p, x);
  multiply_add(cubic, upper.c, lower.c, x);
  if constexpr (deviation == 8) {
    FineBasis finer, finest;
    make_fine_basis(upper, upper_low, &finer);
    make_fine_basis(lower, lower_low, &finest);
    multiply_add(linear, finer.q, finest.q, x);
    multiply_add(cubic, finer.e, finest.e, x);
  }
}

// Scale words of two stages: of rows r and r + 8, groups 2 t and 2 t + 1; those of two stages more
// are on their way.
struct Words {
  const uint16_t* from[2];
  int tile, left;                        // groups of the row from this lane's first on
  uint32_t of[2][2], coming[2][2] = {};  // coming: any valid word will do beyond a row's end

  // From an even stage on.
  __device__ __forceinline__ void turn_to(const Cut& cut, const uint16_t* scale, int its_tile,
                                          int stage, int lane) {
    const int group = stage * kStageGroups + 2 * (lane & 3), last = cut.rows_of(its_tile) - 1;
    const uint16_t* const words = scale + cut.first_row(its_tile) * cut.groups + group;
    from[0] = words + min(lane >> 2, last) * cut.groups;
    from[1] = words + min((lane >> 2) + 8, last) * cut.groups;
    tile = its_tile;
    left = cut.groups - group;
  }

  __device__ __forceinline__ void load() {
#pragma unroll
    for (int r = 0; r < 2; r++) {
#pragma unroll
      for (int i = 0; i < 2; i++) coming[r][i] = i < left ? __ldcg(from[r] + i) : 0x3C00;
    }
  }

  __device__ __forceinline__ void advance(const Cut& cut, const uint16_t* scale, int lane) {
#pragma unroll
    for (int i = 0; i < 4; i++) of[i / 2][i % 2] = coming[i / 2][i % 2];
    from[0] += kChunk;
    from[1] += kChunk;
    left -= kChunk;
    if (left + 2 * (lane & 3) <= 0) {
      if (tile + 1 >= cut.tiles) return;
      turn_to(cut, scale, tile + 1, 0, lane);
    }
    load();
  }
};

// What a word of the phi-grid says, without branches: fields 0 and 31 have no other bits set once
// one is added to them.
__device__ __forceinline__ float scale_value(uint32_t word, float unit) {
  const float value = __half2float(__ushort_as_half(static_cast<unsigned short>(word & 0xFFF8)));
  return ((word + 0x400) & 0x7800) == 0 ? quiet_nan() : value * unit;
}

// What the warps of a block share, but for x.
template <int rows>
struct Shared {
  Bend bends[kBendCount];
  uint4 zeros[rows * 4 + 4];  // as far as a lane reads from where a group begins

  __device__ __forceinline__ void fill() {
    const int i = static_cast<int>(threadIdx.x);
    if (i < kBendCount) bends[i] = {kDeviceLines.of[i] / 8, kDeviceBends.of[i] / 512};
    if (i < rows * 4 + 4) zeros[i] = uint4{};
  }
};

template <int deviation, int rows, bool brain, int depth>
struct Worker {
  static constexpr int kSpread = 8 / rows;           // groups whose sums come out side by side
  static constexpr int kScales = rows == 1 ? 2 : 1;  // groups that a lane's two columns are of
  static constexpr int kGroupStep = 2 * rows * 4;    // of x's fragments

  const Shared<rows>& shared;
  const uint4 *mine, *zeros;  // of this lane's column of x: group 0, and nothing
  const float* back;
  int lane;
  float unit;  // of scales
  Words words;
  Sums linear, cubic;
  float sums[2][2];

  __device__ __forceinline__ void begin_tile() {
    sums[0][0] = sums[0][1] = sums[1][0] = sums[1][1] = 0;
  }
  __device__ __forceinline__ void begin_sums() { linear = cubic = Sums{}; }

  __device__ __forceinline__ uint32_t word(int r, int group, int column) const {
    if constexpr (rows == 1) return words.of[r][column];
    const uint32_t both = words.of[r][0] | words.of[r][1] << 16;
    return __shfl_sync(~0u, both, (lane & ~3) | group >> 1) >> (group & 1) * 16 & 0xFFFF;
  }

  // Sums of kSpread groups, from `group` on, times their scales.
  __device__ __forceinline__ void apply(int group) {
    float2 shift;
    if constexpr (brain) shift = reinterpret_cast<const float2*>(back + group * rows)[lane & 3];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float scale;
      Bend bend;
#pragma unroll
      for (int column = 0; column < 2; column++) {
        if (column < kScales) {
          const uint32_t said = word(r, group % kChunk + (lane & 3) * 2 / rows, column);
          scale = scale_value(said, unit);
          bend = shared.bends[said & kBendMask];
        }
        const int i = 2 * r + column;
        const float level = bend.line * linear.of[i] + bend.cubic * cubic.of[i];
        const float factor = brain ? scale * (column == 0 ? shift.x : shift.y) : scale;
        sums[r][rows == 1 ? 0 : column] += level * factor;
      }
    }
    begin_sums();
  }

  // The next stage of the ring, whose groups begin at `group`: an even stage, or an odd one. Column
  // n of a product is row n % rows of x, in the group n / rows of the ones spread.
  template <bool odd>
  __device__ __forceinline__ void multiply_stage(Ring<deviation, depth>* ring, int group) {
    const uint4* const stage = mine + group * kGroupStep;
    ring->await();
#pragma unroll
    for (int i = 0; i < kStageGroups; i++) {
      Codes codes[2];
      ring->read(i, codes);
      const bool spread = (odd * kStageGroups + i) % kSpread == (lane >> 2) / rows;
      const uint4* const x = spread ? stage + i * kGroupStep : zeros;
      multiply_octet<deviation>(codes[0].index.x, codes[0].high.x, codes[0].low.x, codes[1].index.x,
                                codes[1].high.x, codes[1].low.x, x[0], &linear, &cubic);
      multiply_octet<deviation>(codes[0].index.y, codes[0].high.y, codes[0].low.y, codes[1].index.y,
                                codes[1].high.y, codes[1].low.y, x[rows * 4], &linear, &cubic);
      if (rows > 1 && i % kSpread == kSpread - 1) apply(group + i - kSpread + 1);
    }
    ring->refill();
  }

  // As many of the two stages from an even one on as are there, from `place` on; and how many.
  __device__ __forceinline__ int multiply_chunk(Ring<deviation, depth>* ring, const Cut& cut,
                                                const Place& place) {
    const int group = place.stage * kStageGroups;
    const bool odd = (place.stage & 1) != 0;
    const bool both = !odd && place.left > 1 && place.stage + 1 < cut.stages;
    if (!odd) multiply_stage<false>(ring, group);
    if (odd || both) multiply_stage<true>(ring, both ? group + kStageGroups : group);
    if constexpr (rows == 1) apply(odd ? group - kStageGroups : group);
    return both ? 2 : 1;
  }

  // Adds up the lanes whose columns are of one row of x: the sums of 16 rows.
  __device__ __forceinline__ void finish(float* partial) {
    const int part = lane & 3, row = lane >> 2;
#pragma unroll
    for (int r = 0; r < 2; r++) {
#pragma unroll
      for (int column = 0; column < (rows == 1 ? 1 : 2); column++) {
        float sum = sums[r][column];
        if (rows <= 2) sum += __shfl_xor_sync(~0u, sum, 1);
        if (rows <= 4) sum += __shfl_xor_sync(~0u, sum, 2);
        if (part < (rows + 1) / 2) partial[(row + 8 * r) * rows + 2 * part + column] = sum;
      }
    }
    begin_tile();
  }
};

}  // namespace phiquant::cuda
