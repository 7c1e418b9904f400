// A row of x in shared memory as 8-bit tensor operations take it: in fixed point.
//
// The numbers of a group become integers X = x 2^(29 - e), e the exponent of its largest magnitude,
// so that |X| < 2^30: whatever is not 2^-22 (fp16: 2^-19) of that or smaller keeps all its bits. X
// is d0 + 2^8 d1 + 2^16 d2 + 2^24 d3 with digits -128 .. 127, which are columns of their own.
//
// Two groups are a step. Of the 8 columns of an operation four are the digits of the first group
// and four those of the second: thread 4 c + t has 32 weights of group t / 2, and column c is zero
// to it unless it is of that group. What each of the 16 other threads has of a step is the same
// digit of 32 weights.
#pragma once

#include "fragments.cuh"

namespace phiquant::cuda {

inline constexpr int kStepGroups = 2;
inline constexpr int kStepBytes = 4 * kStepGroups * kGroup;

// Where a step has digit `d` of the 32 weights of thread `part` of four: the first 16, and the
// others 64 bytes from it, where ^ 64 leads. Eight threads that read touch every bank once, as do
// 16 that write.
__device__ __forceinline__ int digit_place(int d, int part) {
  return d * 128 + (d & 1) * 64 + part * 16;
}

// Of the two columns of a thread t, digits 0 and 1 or 2 and 3 of a group: what sums of indices
// begin with, as an index is 7 more than its position, and what X was multiplied with.
struct StepParts {
  int4 shift[4];  // of rows r, r, r + 8, r + 8
  float back[4];
};

// Eight columns of a row, two a word.
struct Eight {
  uint4 words;

  // 0 beyond `count`; any alignment.
  __device__ __forceinline__ static Eight load(const uint16_t* from, int64_t count) {
    if (count >= 8 && (reinterpret_cast<uintptr_t>(from) & 15) == 0)
      return {__ldcg(reinterpret_cast<const uint4*>(from))};
    uint32_t found[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint32_t low = 2 * i < count ? __ldcg(from + 2 * i) : 0;
      const uint32_t high = 2 * i + 1 < count ? __ldcg(from + 2 * i + 1) : 0;
      found[i] = low | high << 16;
    }
    return {{found[0], found[1], found[2], found[3]}};
  }

  // As bits of a magnitude.
  __device__ __forceinline__ uint32_t largest() const {
    constexpr uint32_t kMagnitude = 0x7FFF7FFF;
    const uint32_t both = __vmaxu2(__vmaxu2(words.x & kMagnitude, words.y & kMagnitude),
                                   __vmaxu2(words.z & kMagnitude, words.w & kMagnitude));
    return max(both & 0xFFFF, both >> 16);
  }
};

// What a group's numbers are multiplied with, but for 2^28, and 2^e: its largest has an exponent
// field of fp32 of 1 at least. NaN if one of them is not finite.
struct GroupUnit {
  float there, back;

  template <bool brain>
  __device__ __forceinline__ static GroupUnit of(uint32_t largest) {
    const uint32_t field = max(largest >> (brain ? 7 : 10), 1u), most = brain ? 255 : 31;
    const uint32_t wide = brain ? field : field + 112;
    return {__uint_as_float((255 - wide) << 23),
            field == most ? quiet_nan() : __uint_as_float(wide << 23)};
  }
};

// Digits of four columns: one a byte, a word each digit.
struct Digits {
  uint32_t of[4];

  // X, and 128 for every digit of it.
  template <bool brain>
  __device__ __forceinline__ static uint32_t fixed(uint32_t bits, float there) {
    const float x = brain ? __uint_as_float(bits << 16)
                          : __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
    return static_cast<uint32_t>(__float2int_rn(x * there * 0x1p28f)) + 0x80808080;
  }

  template <bool brain>
  __device__ __forceinline__ static Digits make(uint32_t first, uint32_t second, float there) {
    const uint32_t a = fixed<brain>(first & 0xFFFF, there), b = fixed<brain>(first >> 16, there);
    const uint32_t c = fixed<brain>(second & 0xFFFF, there), d = fixed<brain>(second >> 16, there);
    const uint32_t ab = __byte_perm(a, b, 0x5140), cd = __byte_perm(c, d, 0x5140);
    const uint32_t ab_high = __byte_perm(a, b, 0x7362), cd_high = __byte_perm(c, d, 0x7362);
    constexpr uint32_t kSigns = 0x80808080;
    return {{__byte_perm(ab, cd, 0x5410) ^ kSigns, __byte_perm(ab, cd, 0x7632) ^ kSigns,
             __byte_perm(ab_high, cd_high, 0x5410) ^ kSigns,
             __byte_perm(ab_high, cd_high, 0x7632) ^ kSigns}};
  }
};

// A row of x on its way to `fragments` and `parts`; `groups` is a multiple of 4. A thread has 8
// columns at a time, 170 instructions.
template <bool brain>
struct DigitsPreparation {
  const uint16_t* x;  // [columns]
  int columns, groups;
  uint8_t* fragments;
  StepParts* parts;

  __device__ __forceinline__ int pieces() const { return groups * 8; }

  __device__ __forceinline__ Eight load(int item) const {
    return Eight::load(x + item * 8, columns - item * 8);
  }

  // By whole warps: 8 threads have a group.
  __device__ __forceinline__ void store(int item, const Eight& eight) const {
    uint32_t largest = eight.largest();
#pragma unroll
    for (int i = 1; i < 8; i *= 2) largest = max(largest, __shfl_xor_sync(~0u, largest, i));
    const GroupUnit unit = GroupUnit::of<brain>(largest);
    const Digits low = Digits::make<brain>(eight.words.x, eight.words.y, unit.there);
    const Digits high = Digits::make<brain>(eight.words.z, eight.words.w, unit.there);
    uint8_t* const to = fragments + item / 16 * kStepBytes;
    const int at = (item >> 2 & 3) * 16 + (item & 1) * 8, second = (item & 2) * 32;
    int sums[4];
#pragma unroll
    for (int d = 0; d < 4; d++) {
      *reinterpret_cast<uint2*>(to + ((digit_place(d, 0) + at) ^ second)) = {low.of[d], high.of[d]};
      sums[d] = __dp4a(static_cast<int>(high.of[d]), 0x01010101,
                       __dp4a(static_cast<int>(low.of[d]), 0x01010101, 0));
    }
    StepParts* const part = parts + item / 16;
    store_part(item, unit.back * 0x1p-29f, sums[0] + sums[1] * 0x10000, 0, part);
    store_part(item, unit.back * 0x1p-13f, sums[2] + sums[3] * 0x10000, 1, part);
  }

  // `both`: sums of two digits, below 2^14 with those of the group's other threads.
  __device__ __forceinline__ void store_part(int item, float back, int both, int which,
                                             StepParts* to) const {
#pragma unroll
    for (int other = 1; other < 8; other *= 2) both += __shfl_xor_sync(~0u, both, other);
    if ((item & 7) != 0) return;
    const int low = static_cast<int16_t>(both), high = (both - low) >> 16;
    const int part = 2 * (item >> 3 & 1) + which;
    to->shift[part] = {-7 * low, -7 * high, -7 * low, -7 * high};
    to->back[part] = back;
  }

  // All of a block's threads; the first pieces are asked for before `meanwhile` asks for more.
  template <class Other>
  __device__ __forceinline__ void run(const Other& meanwhile) const {
    constexpr int kFirst = 2;  // of a thread
    const int step = static_cast<int>(blockDim.x);
    int item = static_cast<int>(threadIdx.x);
    Eight first[kFirst];
#pragma unroll
    for (int i = 0; i < kFirst; i++)
      if (item + i * step < pieces()) first[i] = load(item + i * step);
    meanwhile();
#pragma unroll
    for (int i = 0; i < kFirst; i++, item += step)
      if (item < pieces()) store(item, first[i]);
    for (; item < pieces(); item += step) store(item, load(item));
  }
};

}  // namespace phiquant::cuda
