// Where the remainders of a row's block are, and how far its lanes have read them.
#pragma once

#include "kernels.h"
#include "overlap.cuh"
#include "stages.cuh"

namespace phiquant::cuda {

// The remainders of a row's block, as far as they are not read yet; the same in the row's lanes.
struct Stream {
  const uint32_t* words;  // aligned; the first may begin before the payload, in its allocation
  int at;                 // the bit, from there on, at which the next strip's begin
  int limit;  // the bit at which the last one's end at the latest; -1: not in the payload
};

inline constexpr int kMostBlockBits = 8192;           // at most 15 a weight
inline constexpr int kNoBlock = kMostBlockBits + 64;  // bits of a lane whose scale word is none

// Where a block begins, as the planes say.
struct Begin {
  int64_t start;
  uint32_t offset;
};

__device__ __forceinline__ uint32_t start_of(const Remainder& remainder, uint32_t block) {
  return remainder.consecutive ? block / kBlocksPerStart : block;
}

__device__ __forceinline__ Begin load_begin(const Remainder& remainder, uint32_t block) {
  uint32_t offset;  // 16 bits, loaded to 32: no instruction has to make them so, and wait
  asm("ld.global.nc.u16 %0, [%1];" : "=r"(offset) : "l"(remainder.offsets + block));
  return {__ldg(remainder.starts + start_of(remainder, block)), offset};
}

__device__ __forceinline__ void fetch_begin(const Remainder& remainder, uint32_t block) {
  fetch_to_l2(remainder.offsets + block);
  fetch_to_l2(remainder.starts + start_of(remainder, block));
}

__device__ __forceinline__ Stream open_stream(const Remainder& remainder, const Begin& begin) {
  const int64_t from = begin.start + begin.offset, left = remainder.size - kPadding - from;
  const bool inside = begin.start >= 0 && begin.start <= remainder.size && left >= 0;
  const auto address = reinterpret_cast<uintptr_t>(remainder.payload + (inside ? from : 0));
  const int at = static_cast<int>(address & 3) * 8;
  const int bits = left < kMostBlockBits / 8 ? static_cast<int>(left) * 8 : kMostBlockBits;
  return {reinterpret_cast<const uint32_t*>(address & ~uintptr_t{3}), at, inside ? at + bits : -1};
}

// The bit at which this lane's remainders begin; the stream is then at the next strip's. `lanes`:
// of a row.
template <int lanes>
__device__ __forceinline__ int take_bits(int bits, Stream* stream) {
  int before = 0, sum = bits;
  const int lane = lane_of_thread() % lanes;
#pragma unroll
  for (int step = 1; step < lanes; step *= 2) {
    const int others = __shfl_xor_sync(~0u, sum, step);
    before += (lane & step) ? others : 0;
    sum += others;
  }
  const int at = stream->at + before;
  stream->at += sum;
  return at;
}

}  // namespace phiquant::cuda
