// One warp's arithmetic: 16 rows of indices by one row of x, in 8-bit tensor operations.
//
// A level is a p + b p^3, p = index - 7: with the tetrahedral numbers T(p) = (p^3 - p) / 6, which
// fit 8 bits, (a + b) p + 6 b T(p). Sums of p X and T(p) X over a group are exact: a digit is 128
// at most, a group has 64, so that sums of a digit stay below 2^20 (7 2^13 + 15 2^13 on the way for
// p, 84 2^13 for T), and of two digits below 2^28.
//
// Instructions for a word, 8 weights: 3 for indices, 7 for T: `prmt` looks up 4 of 8 bytes, and a
// selector with its highest bit set gives the byte's sign, 8 times. So one table for indices below
// 8 gives -1 or 0 for those above, one for these 0 for those below, as it holds nothing negative:
// what is looked up for one weight adds up to T(p), and the tensor cores add. 3 operations take 16
// weights of a lane.
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

// Halves of tables. They come from memory: of a constant the compiler makes a copy for every look-up.
struct Tables {
  uint32_t low, high;

  __device__ __forceinline__ void fill() {
    low = 0xF6ECDDC8;
    high = 0x0B050201;
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
};

struct IndexSums {
  IntSums p, t;

  // One word of rows r and r + 8; x: digits of its weights 0 to 3, 4 to 7, the even, the odd ones.
  __device__ __forceinline__ void add(const Tables& of, uint32_t upper, uint32_t lower,
                                      const uint4& x) {
    constexpr uint32_t kLow = 0x0F0F0F0F, kHighest = 0x88888888;
    add_unsigned(&p, {upper & kLow, lower & kLow, upper >> 4 & kLow, lower >> 4 & kLow}, x.z, x.w);
    add_signed(&t,
               {of.below(upper), of.below(lower), of.below(upper >> 16), of.below(lower >> 16)},
               x.x, x.y);
    upper ^= kHighest;
    lower ^= kHighest;
    add_signed(&t,
               {of.above(upper), of.above(lower), of.above(upper >> 16), of.above(lower >> 16)},
               x.x, x.y);
  }
};

// a + b and 6 b of every bend, times a power of two.
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
    bends[i] = {(line + cubic) * unit, 6 * cubic * unit};
  }
};

// A stage's scale words on their way: lane 2 r + i has those of groups 2 i and 2 i + 1 of row r.
struct StageWords {
  const uint16_t* from;
  int left;  // groups of the row from this lane's first on
  uint32_t coming;

  __device__ __forceinline__ void turn_to(const Cut& cut, const uint16_t* scale, const Place& place,
                                          int lane) {
    const int group = place.stage * kStageGroups + 2 * (lane & 1);
    const int row = min(lane >> 1, cut.rows_of(place.tile) - 1);
    from = scale + cut.first_row(place.tile) * cut.groups + row * cut.groups + group;
    left = cut.groups - group;
  }
  __device__ __forceinline__ void advance() {
    from += kStageGroups;
    left -= kStageGroups;
  }
  __device__ __forceinline__ void load() {
    coming = 0x3C003C00;  // any valid words will do beyond a row's end
    if (left > 0) coming = __ldcg(reinterpret_cast<const uint32_t*>(from));
  }
};

struct IndexWorker {
  const IndexShared& shared;
  const StepParts* parts;
  const uint8_t* fragments;  // this lane's of step 0,
  int apart;                 // and how far those of other steps are
  uint32_t* words;           // of the stage
  int lane;
  Tables tables;
  float sums[2] = {};

  // Sums of a step, whose first group is `i` of its stage, times their scales.
  __device__ __forceinline__ void apply(const IndexSums& step, int i, float back) {
    const auto* const mine = reinterpret_cast<const uint16_t*>(words) + (lane >> 2) * kStageGroups +
                             i + (lane >> 1 & 1);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const uint32_t word = mine[r * 8 * kStageGroups];
      const IndexBend bend = shared.bends[word & kBendMask];
      const auto p = static_cast<float>(step.p.of[2 * r] + 256 * step.p.of[2 * r + 1]);
      const auto t = static_cast<float>(step.t.of[2 * r] + 256 * step.t.of[2 * r + 1]);
      sums[r] += (bend.p * p + bend.t * t) * scale_value(word) * back;
    }
  }

  __device__ __forceinline__ static float scale_value(uint32_t word) {
    const float value = __half2float(__ushort_as_half(static_cast<unsigned short>(word & 0xFFF8)));
    return ((word + 0x400) & 0x7800) == 0 ? quiet_nan() : value;
  }

  __device__ __forceinline__ static const uint4& digits(const uint8_t* x, int word) {
    return *reinterpret_cast<const uint4*>(x + word * kWordBytes);
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
      const uint8_t* const x = fragments + (first + i) * apart;
      const int4 shift = parts[first + i].shift[lane & 3];
      IndexSums step{{shift.x, shift.y, shift.z, shift.w}, {}};
      step.add(tables, upper.x, lower.x, digits(x, 0));
      step.add(tables, upper.y, lower.y, digits(x, 1));
      step.add(tables, upper.z, lower.z, digits(x, 2));
      step.add(tables, upper.w, lower.w, digits(x, 3));
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
