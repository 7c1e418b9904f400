// The stream of remainders of one block of 512 weights: a warp reads it, a lane 16 weights of it.
#pragma once

#include "kernels.h"

namespace phiquant::cuda {

inline constexpr int kRun = 16;  // weights of a block that a lane takes, side by side

// More bits than a block has: of a run whose scale word is none, and with it all that follow.
inline constexpr int kNoBits = 1 << 24;

// The byte at which a block begins; -1 if that is not inside of the payload.
__device__ __forceinline__ int64_t begin_of(const Remainder& remainder, int64_t block) {
  const int64_t start = remainder.starts[remainder.consecutive ? block / kBlocksPerStart : block];
  if (start < 0 || start > remainder.size) return -1;
  const int64_t begin = start + remainder.offsets[block];
  return begin + kPadding > remainder.size ? -1 : begin;
}

// The sum of `mine` over the lanes before this one.
__device__ __forceinline__ int sum_before(int mine) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  int sum = mine;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += before;
  }
  return sum - mine;
}

// Where this lane's remainders are: words that hold them, and the bit of the first that they begin
// at. Words are aligned; the first may begin before the payload, in the same allocation.
struct Run {
  const uint32_t* words;
  int bit;
};

// A run that would end outside of the payload is read from its start instead: false.
__device__ __forceinline__ bool open_run(const Remainder& remainder, int64_t begin, int bits_before,
                                         int bits, Run* run) {
  const int64_t first = begin * 8 + bits_before;
  const bool inside =
      begin >= 0 && bits_before + bits < kNoBits && first + bits <= (remainder.size - kPadding) * 8;
  const uint8_t* byte = remainder.payload + (inside ? first >> 3 : 0);
  const uintptr_t address = reinterpret_cast<uintptr_t>(byte);
  run->words = reinterpret_cast<const uint32_t*>(address & ~uintptr_t{3});
  run->bit = static_cast<int>(address & 3) * 8 + (inside ? static_cast<int>(first & 7) : 0);
  return inside;
}

// The remainders of `width` bits each, at most 32. The plane's padding makes the word after the
// last remainder's readable.
__device__ __forceinline__ void take_bits(const Run& run, const int (&width)[kRun],
                                          uint32_t (&rest)[kRun]) {
  int bit = run.bit;
#pragma unroll
  for (int i = 0; i < kRun; i++) {
    const uint32_t* from = run.words + (bit >> 5);
    const uint32_t word = __funnelshift_r(__ldg(from), __ldg(from + 1), bit);
    asm("bmsk.clamp.b32 %0, 0, %1;" : "=r"(rest[i]) : "r"(width[i]));
    rest[i] &= word;
    bit += width[i];
  }
}

}  // namespace phiquant::cuda
