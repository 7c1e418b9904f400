// One warp's arithmetic: 16 rows of indices by one row of x, in 8-bit tensor operations.
//
// A level is a p + b p^3, p = index - 7: with the tetrahedral numbers T(p) = (p^3 - p) / 6, which
// fit 8 bits, (a + b) p + 6 b T(p). Sums of p X and T(p) X over a group are exact: a digit is 128
// at most and a group has 64, so that 16 times a sum of a digit times p stays below 2^22 on its way
// (16 (15 2^12 + 7 2^13) of even indices, 16 15 2^12 of odd ones), one of T below 2^20 (85 2^13),
// and of two digits all are below 2^30.
//
// Instructions for a word, 8 weights: 2 for indices, of which those in the upper halves of bytes
// stay there and count 16 times; 7 for T: `prmt` looks up 4 of 8 bytes, and a selector with its
// highest bit set gives the byte's sign, 8 times. So one table for indices below 8 gives -1 or 0
// for those above, one for these 0 for those below, as it holds nothing negative: what is looked up
// for one weight adds up to T(p), and the tensor cores add. 3 operations take 16 weights of a lane.
// Logic and permutations go at half the rate: what multipliers can do instead is left to them.
#pragma once

#include "digits.cuh"
#include "grid.cuh"
#include "ring.cuh"

namespace phiquant::cuda {

struct IntSums {
  int of[4];  // rows r, r, r + 8, r + 8; columns 2 t, 2 t + 1
};

// Four bytes for each of rows r and r + 8 and of both halves of a word.
struct Bytes {
  uint32_t of[4];  // r, r + 8, r, r + 8
};

__device__ __forceinline__ void add_unsigned(IntSums* sums, const Bytes& a, uint32_t b0,
                                             uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(sums->of[0]), "+r"(sums->of[1]), "+r"(sums->of[2]), "+r"(sums->of[3])
      : "r"(a.of[0]), "r"(a.of[1]), "r"(a.of[2]), "r"(a.of[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void add_signed(IntSums* sums, const Bytes& a, uint32_t b0,
                                           uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(sums->of[0]), "+r"(sums->of[1]), "+r"(sums->of[2]), "+r"(sums->of[3])
      : "r"(a.of[0]), "r"(a.of[1]), "r"(a.of[2]), "r"(a.of[3]), "r"(b0), "r"(b1));
}

// Bytes of a table of 8 for the four lowest nibbles of `codes`: the sign of the byte, 8 times,
// where a nibble is above 7.
__device__ __forceinline__ uint32_t look_up(uint32_t low, uint32_t high, uint32_t codes) {
  uint32_t found;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(found) : "r"(low), "r"(high), "r"(codes));
  return found;
}

// Constants that come from memory: of what it knows the compiler makes a copy for every look-up,
// and no multiplication.
struct Tables {
  uint32_t low, high, minus_one;

  __device__ __forceinline__ void fill() {
    low = 0xF6ECDDC8;
    high = 0x0B050201;
    minus_one = ~0u;
  }

  // T(p) for indices below 8: -56, -35, -20, -10, -4, -1, 0, 0.
  __device__ __forceinline__ uint32_t below(uint32_t codes) const {
    return look_up(low, 0x0000FFFC, codes);
  }
  // T(p) for indices from 8 on, whose highest bit was flipped: 0, 1, 4, 10, 20, 35, 56, 84, one
  // more where `below` gives -1.
  __device__ __forceinline__ uint32_t above(uint32_t codes) const {
    return look_up(high, 0x54382415, codes);
  }
  // The difference, as a product.
  __device__ __forceinline__ uint32_t without(uint32_t word, uint32_t part) const {
    return part * minus_one + word;
  }
};

__device__ __forceinline__ uint32_t high_half(uint32_t word) { return __dp2a_lo(word, 0x100u, 0u); }

// Sums of a step: of even indices, of 16 times the odd ones, and of T.
struct IndexSums {
  IntSums even, odd, t;

  // T of one word of rows r and r + 8.
  __device__ __forceinline__ void add_cubic(const Tables& of, uint32_t upper, uint32_t lower,
                                            uint32_t x0, uint32_t x1) {
    constexpr uint32_t kHighest = 0x88888888;
    add_signed(
        &t,
        {of.below(upper), of.below(lower), of.below(high_half(upper)), of.below(high_half(lower))},
        x0, x1);
    upper ^= kHighest;
    lower ^= kHighest;
    add_signed(
        &t,
        {of.above(upper), of.above(lower), of.above(high_half(upper)), of.above(high_half(lower))},
        x0, x1);
  }

  // Two words of rows r and r + 8; x: digits of weights 0 to 3, 4 to 7 and so on.
  __device__ __forceinline__ void add(const Tables& of, uint32_t upper0, uint32_t upper1,
                                      uint32_t lower0, uint32_t lower1, const uint4& x) {
    constexpr uint32_t kEven = 0x0F0F0F0F;
    const Bytes low{upper0 & kEven, lower0 & kEven, upper1 & kEven, lower1 & kEven};
    add_unsigned(&even, low, __byte_perm(x.x, x.y, 0x6420), __byte_perm(x.z, x.w, 0x6420));
    add_unsigned(&odd,
                 {of.without(upper0, low.of[0]), of.without(lower0, low.of[1]),
                  of.without(upper1, low.of[2]), of.without(lower1, low.of[3])},
                 __byte_perm(x.x, x.y, 0x7531), __byte_perm(x.z, x.w, 0x7531));
    add_cubic(of, upper0, lower0, x.x, x.y);
    add_cubic(of, upper1, lower1, x.z, x.w);
  }

  // Of row r or r + 8: 16 times the sum of positions, and the sum of T, of two digits.
  __device__ __forceinline__ float linear(int r) const {
    const int low = even.of[2 * r] * 16 + odd.of[2 * r];
    return static_cast<float>((even.of[2 * r + 1] * 16 + odd.of[2 * r + 1]) * 256 + low);
  }
  __device__ __forceinline__ float cubic(int r) const {
    return static_cast<float>(t.of[2 * r + 1] * 256 + t.of[2 * r]);
  }
};

// (a + b) / 16 and 6 b of every bend, times a power of two.
struct IndexBend {
  float p, t;
};

// What the warps of a block share, but for x.
struct IndexShared {
  IndexBend bends[kBendCount];
  Tables tables;

  __device__ __forceinline__ void fill(float unit) {
    const int i = static_cast<int>(threadIdx.x);
    if (i == 0) tables.fill();
    if (i >= kBendCount) return;
    const float line = kDeviceLines.of[i] / 8, cubic = kDeviceBends.of[i] / 512;
    bends[i] = {(line + cubic) / 16 * unit, 6 * cubic * unit};
  }
};

// Scale words that are NaN if they are none: exponent fields 0 and 31 have no other bits set once
// one is added to them.
__device__ __forceinline__ uint32_t checked_words(uint32_t both) {
  const uint32_t fields = ((both & 0x7C007C00) + 0x04000400) & 0x78007800;
  if ((fields & 0xFFFF) == 0) both |= 0x7FF8;
  if (fields >> 16 == 0) both |= 0x7FF80000;
  return both;
}

// Scale words of the next two stages on their way: lane 2 r + i has those of groups 2 i and 2 i + 1
// of row r.
struct StageWords {
  const uint16_t* from;
  int left;  // groups of the row from this lane's first on
  Place place;
  uint32_t coming[2];

  __device__ __forceinline__ void turn_to(const Cut& cut, const uint16_t* scale, int lane) {
    const int group = place.stage * kStageGroups + 2 * (lane & 1);
    const int row = min(lane >> 1, cut.rows_of(place.tile) - 1);
    from = scale + cut.first_row(place.tile) * cut.groups + row * cut.groups + group;
    left = cut.groups - group;
  }
  // Those of `place`.
  __device__ __forceinline__ void load(const Cut& cut, const uint16_t* scale, int lane) {
    coming[0] = coming[1];
    coming[1] = 0x3C003C00;  // any valid words will do beyond a row's end
    if (place.left <= 0) return;
    if (left > 0) coming[1] = __ldcg(reinterpret_cast<const uint32_t*>(from));
    from += kStageGroups;
    left -= kStageGroups;
    if (place.advance(cut) && place.left > 0) turn_to(cut, scale, lane);
  }
  __device__ __forceinline__ void begin(const Cut& cut, const uint16_t* scale, int lane) {
    if (place.left > 0) turn_to(cut, scale, lane);
    load(cut, scale, lane);
    load(cut, scale, lane);
  }
};

struct IndexWorker {
  const IndexShared& shared;
  const StepParts* parts;    // this lane's digits of two words of codes, and of two more, of step
  const uint8_t* digits[2];  // 0,
  int apart;                 // and how far those of other steps are
  uint32_t* words;           // of the stage
  int lane;
  Tables tables;
  float sums[2] = {};

  // Sums of a step, whose first group is `i` of its stage, times their scales.
  __device__ __forceinline__ void apply(const IndexSums& step, int i, float back) {
    const auto* const mine =
        reinterpret_cast<const uint16_t*>(words) + (lane >> 2) * kStageGroups + i + (lane >> 1 & 1);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const uint32_t word = mine[r * 8 * kStageGroups];
      const IndexBend bend = shared.bends[word & kBendMask];
      const float scale =
          __half2float(__ushort_as_half(static_cast<unsigned short>(word & 0xFFF8)));
      sums[r] += (bend.p * step.linear(r) + bend.t * step.cubic(r)) * scale * back;
    }
  }

  // `stage`: in shared memory, of the codes of 4 groups from `group` on.
  __device__ __forceinline__ void multiply_stage(const uint8_t* stage, int group) {
    using Index = PlaneStage<32>;
    const int mine = Index::place(lane >> 2, lane >> 1 & 1) + (lane & 1) * 16;
    const int first = group / kStepGroups;
#pragma unroll
    for (int i = 0; i < kStageGroups / kStepGroups; i++) {
      const uint8_t* const row = stage + (mine ^ i * 64);
      const auto upper = *reinterpret_cast<const uint4*>(row);
      const auto lower = *reinterpret_cast<const uint4*>(row + 8 * Index::kRowBytes);
      const auto* const x = reinterpret_cast<const uint4*>(digits[0] + (first + i) * apart);
      const auto* const more = reinterpret_cast<const uint4*>(digits[1] + (first + i) * apart);
      const int4 shift = parts[first + i].shift[lane & 3];
      IndexSums step{{shift.x, shift.y, shift.z, shift.w}, {}, {}};
      step.add(tables, upper.x, upper.y, lower.x, lower.y, *x);
      step.add(tables, upper.z, upper.w, lower.z, lower.w, *more);
      apply(step, i * kStepGroups, parts[first + i].back[lane & 3]);
    }
  }

  // Adds up the lanes whose columns are of one row: the sums of 16 rows.
  __device__ __forceinline__ void finish(float* partial) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float sum = sums[r];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      if ((lane & 3) == 0) partial[(lane >> 2) + 8 * r] = sum;
      sums[r] = 0;
    }
  }
};

}  // namespace phiquant::cuda
