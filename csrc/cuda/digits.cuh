// A row of x in shared memory as 8-bit tensor operations take it: in fixed point.
//
// The numbers of a group become integers X = x 2^(29 - e), e the exponent of its largest magnitude,
// so that |X| < 2^30: whatever is not 2^-22 (fp16: 2^-19) of that or smaller keeps all its bits. X
// is d0 + 2^8 d1 + 2^16 d2 + 2^24 d3 with digits -128 .. 127, which are columns of their own.
//
// Two groups are a step. Of the 8 columns of an operation four are the digits of the first group
// and four those of the second: thread 4 c + t has 32 weights of group t / 2, and column c is zero
// to it unless it is of that group. What the 16 other threads read of a step is, for each of four
// words of codes, the digits of 8 weights: 0 to 3, 4 to 7, the even ones and the odd ones.
#pragma once

#include "fragments.cuh"

namespace phiquant::cuda {

inline constexpr int kStepGroups = 2;
inline constexpr int kWordBytes = 256 + 32;  // of a step; the 32 keep apart what is stored together
inline constexpr int kStepBytes = 4 * kWordBytes;

// Of the two columns of a thread t, digits 0 and 1 or 2 and 3 of a group: what sums of indices
// begin with, as an index is 7 more than its position, and what X was multiplied with.
struct StepParts {
  int4 shift[4];  // of rows r, r, r + 8, r + 8
  float back[4];
};

// 8 weights of a row, in fixed point.
struct Fixed {
  uint32_t digits[8];  // of weight i, lowest first

  template <bool brain>
  __device__ __forceinline__ void make(const Octet& octet, float there) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const uint32_t pair = octet.pairs[i % 4];
      const uint32_t bits = i < 4 ? pair & 0xFFFF : pair >> 16;
      const float x = brain ? __uint_as_float(bits << 16)
                            : __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
      const int value = __float2int_rn(x * there * 0x1p28f);
      digits[i] = (static_cast<uint32_t>(value) + 0x80808080) ^ 0x80808080;
    }
  }

  // Digit `d` of weights i .. i + 3.
  __device__ __forceinline__ uint32_t four(int i, int d) const {
    const auto select = static_cast<unsigned>(d | (d + 4) << 4);
    const uint32_t low = __byte_perm(digits[i], digits[i + 1], select);
    return __byte_perm(low, __byte_perm(digits[i + 2], digits[i + 3], select), 0x5410);
  }
};

__device__ __forceinline__ int sum_of_four(uint32_t digits, int sum) {
  return __dp4a(static_cast<int>(digits), 0x01010101, sum);
}

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

// A row of x on its way to `fragments` and `parts`; `groups` is a multiple of 4.
template <bool brain>
struct DigitsPreparation {
  const uint16_t* x;  // [columns]
  int64_t columns;
  int groups;
  uint8_t* fragments;
  StepParts* parts;

  __device__ __forceinline__ int pieces() const { return groups * 8; }

  __device__ __forceinline__ Octet load(int item) const {
    return load_octet(x + int64_t{item} * 8, columns - int64_t{item} * 8);
  }

  // By whole warps: 8 threads have a group.
  __device__ __forceinline__ void store(int item, const Octet& octet) const {
    uint32_t largest = largest_of(octet);
#pragma unroll
    for (int i = 1; i < 8; i *= 2) largest = max(largest, __shfl_xor_sync(~0u, largest, i));
    const GroupUnit unit = GroupUnit::of<brain>(largest);
    Fixed fixed;
    fixed.make<brain>(octet, unit.there);
    const int group = item >> 3, step = group / kStepGroups, second = group % kStepGroups;
    const int word = item & 3, half = item >> 2 & 1;
    uint8_t* const to =
        fragments + step * kStepBytes + word * kWordBytes + (2 * second + half) * 16;
    int sums[2] = {};  // of digits 0 and 1, 2 and 3: below 2^14, in 16 bits each
#pragma unroll
    for (int d = 0; d < 4; d++) {
      const uint32_t low = fixed.four(0, d), high = fixed.four(4, d);
      *reinterpret_cast<uint4*>(to + d * 64) = {low, high, __byte_perm(low, high, 0x6420),
                                                __byte_perm(low, high, 0x7531)};
      sums[d / 2] += sum_of_four(high, sum_of_four(low, 0)) * (d % 2 == 0 ? 1 : 0x10000);
    }
    store_parts(item, unit.back, sums, parts + step);
  }

  __device__ __forceinline__ void store_parts(int item, float back, const int (&sums)[2],
                                              StepParts* to) const {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int sum = sums[i];
#pragma unroll
      for (int other = 1; other < 8; other *= 2) sum += __shfl_xor_sync(~0u, sum, other);
      if ((item & 7) != 0) continue;
      const int low = static_cast<int16_t>(sum), high = (sum - low) >> 16;
      const int part = 2 * (item >> 3 & 1) + i;
      to->shift[part] = {-7 * low, -7 * high, -7 * low, -7 * high};
      to->back[part] = back * (i == 0 ? 0x1p-29f : 0x1p-13f);
    }
  }

  // All of a block's threads; the first pieces are asked for before `meanwhile` asks for more.
  template <class Other>
  __device__ __forceinline__ void run(const Other& meanwhile) const {
    constexpr int kFirst = 2;  // of a thread
    const int step = static_cast<int>(blockDim.x);
    int item = static_cast<int>(threadIdx.x);
    Octet first[kFirst];
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
