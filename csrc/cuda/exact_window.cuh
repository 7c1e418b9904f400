// The remainders of exact bf16 weights, added to the floats that their sub-cells begin with.
#pragma once

#include "exact_strip.cuh"

namespace phiquant::cuda {

inline constexpr uint32_t kTwoNaNs = 0x7FFF7FFF;
inline constexpr int kWindowBits = 96;

__device__ __forceinline__ uint32_t load_word(const uint32_t* from) {
  uint32_t word;
  asm("ld.global.nc.L2::128B.b32 %0, [%1];" : "=r"(word) : "l"(from));
  return word;
}

// The stream from bit `at` on, of which `bits` are read, 96 at most. No word beyond these and the
// payload's padding is touched.
__device__ __forceinline__ void open_window(const uint32_t* words, int at, int bits,
                                            uint32_t (&window)[kWindowBits / 32]) {
  const uint32_t* from = words + (static_cast<uint32_t>(at) >> 5);
  const int end = (at & 31) + bits;
  uint32_t of[4] = {load_word(from), load_word(from + 1), 0, 0};
  if (end > 64) of[2] = load_word(from + 2);
  if (end > 96) of[3] = load_word(from + 3);
#pragma unroll
  for (int i = 0; i < 3; i++) window[i] = __funnelshift_r(of[i], of[i + 1], at);
}

// The lowest `count` bits, less than 32.
__device__ __forceinline__ uint32_t lowest_bits(uint32_t bits, int count) {
  uint32_t lowest;
  asm("szext.wrap.u32 %0, %1, %2;" : "=r"(lowest) : "r"(bits), "r"(count));
  return lowest;
}

// 16 weights in pairs, from a window that begins with their remainders, unless they have more bits
// than it. Pairs have less than 32, so the window moves on by one after the other.
__device__ __forceinline__ void add_window(const Sixteen& of, uint32_t (&window)[kWindowBits / 32],
                                           uint32_t (&pairs)[2][4]) {
#pragma unroll
  for (int pair = 0; pair < 8; pair++) {
    const int middle = of.middle(pair), end = of.end(pair);
    const uint32_t both = lowest_bits(window[0], end);
    const uint32_t low = lowest_bits(window[0], middle), high = both >> middle;
    pairs[pair / 4][pair % 4] = of.first[pair / 4][pair % 4] + low + (high << 16);
    if (pair < 7) window[0] = __funnelshift_r(window[0], window[1], end);
    if (pair < 6) window[1] = __funnelshift_r(window[1], window[2], end);  // 4 weights: 60 bits
    if (pair < 5) window[2] >>= end;
  }
}

// 16 weights whose remainders are more than a window, which takes several sub-cells at zero among
// them; NaN if they are not `inside` of the payload.
static __device__ __noinline__ void add_far(const Sixteen& of, const uint32_t* words, int at,
                                            bool inside, uint2 (&pairs)[8]) {
#pragma unroll 1
  for (int pair = 0; pair < 8; pair++) {
    const int middle = of.middle(pair), end = of.end(pair);
    pairs[pair].x = kTwoNaNs;
    if (!inside) continue;
    const uint32_t* from = words + (at >> 5);
    const uint32_t two = __funnelshift_r(__ldg(from), __ldg(from + 1), at);
    const uint32_t low = lowest_bits(two, middle), high = lowest_bits(two, end) >> middle;
    pairs[pair].x = of.first[pair / 4][pair % 4] + low + (high << 16);
    at += end;
  }
}

// A lane's weights in pairs, the first one low, of remainders from bit `at` on: all are asked for
// before the first is used.
template <int sixteens>
__device__ __forceinline__ void add_remainders(const Sixteen (&of)[sixteens], const uint32_t* words,
                                               int at, bool inside,
                                               uint32_t (&pairs)[sixteens][2][4]) {
  uint32_t windows[sixteens][kWindowBits / 32];
  int begin[sixteens];
#pragma unroll
  for (int i = 0; i < sixteens; i++) {
    begin[i] = i == 0 ? at : begin[i - 1] + of[i - 1].bits;
    open_window(words, inside ? begin[i] : 0, inside ? of[i].bits : 0, windows[i]);
  }
#pragma unroll
  for (int i = 0; i < sixteens; i++) {
    add_window(of[i], windows[i], pairs[i]);
    if (__builtin_expect(inside && of[i].bits <= kWindowBits, true)) continue;
    const Sixteen copy = of[i];  // what has an address is in memory: only here
    uint2 far[8];                // apart, so that each is loaded to wherever its pair is
    add_far(copy, words, begin[i], inside, far);
#pragma unroll
    for (int pair = 0; pair < 8; pair++) pairs[i][pair / 4][pair % 4] = far[pair].x;
  }
}

}  // namespace phiquant::cuda
