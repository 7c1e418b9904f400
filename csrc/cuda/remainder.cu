// Remainders of weights whose lossy planes are written, in two passes with a host's allocation
// between them: the first measures blocks and scans their sizes, the second writes their bits. Both
// compute widths anew, as decoding does: that is cheaper than to keep them.
//
// Data contract: weights in any alignment of their own, planes as kernels.h says. Offsets, starts
// and every byte of payload and exceptions are written. Bits of a block meet in shared memory by
// integer atomics, each of a bit of its own: results do not depend on their order.
//
// Instructions a weight, bf16 and nibbles: 56 to measure, 87 to write; with codes of other widths,
// which are read byte by byte, 90 and 113. Bytes, 6 a weight, take a third of that time.
#include "remainder.h"

#include <cuda_fp16.h>

#include "remainder_run.cuh"

namespace phiquant::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kBlocksPerWarp = kBlocksPerStart / kWarps;
constexpr int kScanThreads = 1024;

template <class T>
__device__ __forceinline__ T sum_of_warp(T mine) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) mine += __shfl_xor_sync(~0u, mine, step);
  return mine;
}

// The sum of `mine` over the lanes up to this one.
template <class T>
__device__ __forceinline__ T sum_to_here(T mine) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const T before = __shfl_up_sync(~0u, mine, step);
    if (lane >= step) mine += before;
  }
  return mine;
}

// A block of threads measures a stretch; `starts` and `first_exception` get its sums.
template <Dtype stored, bool nibbles>
__global__ void __launch_bounds__(kThreads) measure(RemainderTask task, int64_t blocks) {
  __shared__ GridTable grid;
  __shared__ int sizes[kBlocksPerStart], astray[kBlocksPerStart];
  const Layout layout = known<nibbles>(task.layout);
  grid.fill(layout, power_of_two(-layout.deviation_bits));
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t begin = int64_t{blockIdx.x} * kBlocksPerStart;
  for (int i = 0; i < kBlocksPerWarp; i++) {
    const int mine = warp * kBlocksPerWarp + i;
    int bits = 0, stray = 0;
    if (begin + mine < blocks) {
      const Place place = place_of(layout, begin + mine);
      const Rests run = rests_of<stored, nibbles>(task, layout, grid, place);
      if (!run.good) task.measured->bad_word = 1;
      bits = run.total;
      stray = __popc(run.astray);
    }
    bits = sum_of_warp(bits);
    stray = sum_of_warp(stray);
    if (lane == 0) {
      sizes[mine] = (bits + 7) / 8;
      astray[mine] = stray;
    }
  }
  __syncthreads();
  if (warp != 0) return;
  const int size = sizes[lane], end = sum_to_here(size), strays = sum_of_warp(astray[lane]);
  if (begin + lane < blocks) {
    task.offsets[begin + lane] = static_cast<uint16_t>(end - size);
    task.astray[begin + lane] = static_cast<uint16_t>(astray[lane]);
  }
  if (lane == 31) {
    task.starts[blockIdx.x] = end;
    task.first_exception[blockIdx.x] = strays;
  }
}

// The sum of `mine` over the threads up to this one, and over all. `sums`: of 32 warps.
__device__ __forceinline__ int64_t sum_to_here_of_all(int64_t mine, int64_t* sums, int64_t* all) {
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t here = sum_to_here(mine);
  if (lane == 31) sums[warp] = here;
  __syncthreads();
  const int64_t warps = sum_to_here(sums[lane]);
  *all = __shfl_sync(~0u, warps, 31);
  const int64_t before = __shfl_sync(~0u, warps, max(warp - 1, 0));
  __syncthreads();
  return here + (warp > 0 ? before : 0);
}

// Sums of stretches to sums of those before, in place, by one block of threads: a stretch is 16384
// weights, so these are few.
__global__ void __launch_bounds__(kScanThreads) scan(RemainderTask task, int64_t stretches) {
  __shared__ int64_t sums[kScanThreads / 32];
  int64_t bytes = 0, strays = 0;
  for (int64_t base = 0; base < stretches; base += kScanThreads) {
    const int64_t at = base + threadIdx.x;
    const int64_t size = at < stretches ? task.starts[at] : 0;
    const int64_t stray = at < stretches ? task.first_exception[at] : 0;
    int64_t all_bytes, all_strays;
    const int64_t end = sum_to_here_of_all(size, sums, &all_bytes);
    const int64_t last = sum_to_here_of_all(stray, sums, &all_strays);
    if (at < stretches) {
      task.starts[at] = bytes + end - size;
      task.first_exception[at] = strays + last - stray;
    }
    bytes += all_bytes;
    strays += all_strays;
  }
  if (threadIdx.x == 0) {
    task.measured->bytes = bytes;
    task.measured->astray = strays;
  }
}

// The fp32 bits of a stored float; by integers where it is not finite, so that NaNs keep theirs.
template <Dtype stored>
__device__ __forceinline__ uint32_t widened_bits(uint32_t bits) {
  if constexpr (stored == Dtype::kFloat32) return bits;
  if constexpr (stored == Dtype::kBFloat16) return bits << 16;
  if ((bits & 0x7C00) == 0x7C00) {
    return (bits & 0x8000) << 16 | 0x7F800000 | (bits & 0x3FF) << 13;
  }
  return __float_as_uint(__half2float(__ushort_as_half(static_cast<unsigned short>(bits))));
}

// Those of a block, which are few and most often none.
template <Dtype stored>
__device__ __forceinline__ void write_exceptions(const RemainderTask& task, int64_t block,
                                                 const Place& place, const Rests& run) {
  if (__ballot_sync(~0u, run.astray != 0) == 0) return;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int64_t stretch = block / kBlocksPerStart, begin = stretch * kBlocksPerStart;
  const int earlier = sum_of_warp(begin + lane < block ? int{task.astray[begin + lane]} : 0);
  int64_t* to = task.exceptions +
                2 * (task.first_exception[stretch] + earlier + sum_before(__popc(run.astray)));
#pragma unroll
  for (int i = 0; i < kRun; i++) {
    if ((run.astray >> i & 1) == 0) continue;
    *to++ = place.row * task.layout.columns + place.column + i;
    *to++ = widened_bits<stored>(run.bits[i]);
  }
}

// One lane's remainders, from bit `at` of the block's words on, which are 0.
__device__ __forceinline__ void put_bits(const Rests& run, int at, uint32_t* words) {
  uint32_t* word = words + (at >> 5);
  uint64_t held = 0;
  int count = at & 31;
#pragma unroll
  for (int i = 0; i < kRun; i++) {
    held |= static_cast<uint64_t>(run.rest[i]) << count;
    count += run.width[i];
    if (count >= 32) {
      atomicOr(word++, static_cast<uint32_t>(held));
      held >>= 32;
      count -= 32;
    }
  }
  if (held != 0) atomicOr(word, static_cast<uint32_t>(held));
}

// `size` bytes from `shift` bytes after the first word, to the payload's aligned words `to`; what
// is not of this block is not touched.
__device__ __forceinline__ void copy_words(const uint32_t* words, int shift, int size,
                                           uint8_t* to) {
  for (int at = (static_cast<int>(threadIdx.x) & 31) * 4; at < shift + size; at += 32 * 4) {
    const uint32_t word = words[at / 4];
    if (at >= shift && at + 4 <= shift + size) {
      *reinterpret_cast<uint32_t*>(to + at) = word;
      continue;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (at + i >= shift && at + i < shift + size)
        to[at + i] = static_cast<uint8_t>(word >> 8 * i);
    }
  }
}

// A warp writes a block.
template <Dtype stored, bool nibbles>
__global__ void __launch_bounds__(kThreads) write(RemainderTask task, int64_t blocks) {
  constexpr int kWords = kBlock * sizeof(typename StoredBits<stored>::Type) / 4 + 1;
  __shared__ GridTable grid;
  __shared__ uint32_t all_words[kWarps][kWords];  // of remainders no wider than weights
  const Layout layout = known<nibbles>(task.layout);
  grid.fill(layout, power_of_two(-layout.deviation_bits));
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t block = int64_t{blockIdx.x} * kWarps + warp;
  if (block >= blocks) return;
  uint32_t* const words = all_words[warp];
  const Place place = place_of(layout, block);
  const Rests run = rests_of<stored, nibbles>(task, layout, grid, place);
  const int64_t begin = task.starts[block / kBlocksPerStart] + task.offsets[block];
  const int shift = static_cast<int>(begin & 3), before = sum_before(run.total);
  const int size = (__shfl_sync(~0u, before + run.total, 31) + 7) / 8;
  for (int i = lane; i * 4 < shift + size; i += 32) words[i] = 0;
  __syncwarp();
  if (place.count > 0) put_bits(run, shift * 8 + before, words);
  __syncwarp();
  copy_words(words, shift, size, task.payload + (begin - shift));
  write_exceptions<stored>(task, block, place, run);
}

template <Dtype stored>
void launch_measure(const RemainderTask& task, bool nibbles, int64_t blocks, cudaStream_t stream) {
  const auto kernel = nibbles ? measure<stored, true> : measure<stored, false>;
  kernel<<<static_cast<unsigned>(stretches_of(blocks)), kThreads, 0, stream>>>(task, blocks);
}

template <Dtype stored>
void launch_write(const RemainderTask& task, bool nibbles, int64_t blocks, cudaStream_t stream) {
  const auto kernel = nibbles ? write<stored, true> : write<stored, false>;
  const auto many = static_cast<unsigned>((blocks + kWarps - 1) / kWarps);
  kernel<<<many, kThreads, 0, stream>>>(task, blocks);
}

bool reads_nibbles(const RemainderTask& task) {
  return task.layout.deviation_bits == 4 && has_nibbles(task.layout, task.planes);
}

}  // namespace

void measure_remainders(const RemainderTask& task, cudaStream_t stream) {
  const int64_t blocks = task.rows * blocks_of(task.layout);
  const auto launch = task.stored == Dtype::kFloat32    ? launch_measure<Dtype::kFloat32>
                      : task.stored == Dtype::kBFloat16 ? launch_measure<Dtype::kBFloat16>
                                                        : launch_measure<Dtype::kFloat16>;
  launch(task, reads_nibbles(task), blocks, stream);
  scan<<<1, kScanThreads, 0, stream>>>(task, stretches_of(blocks));
}

void write_remainders(const RemainderTask& task, cudaStream_t stream) {
  const int64_t blocks = task.rows * blocks_of(task.layout);
  const auto launch = task.stored == Dtype::kFloat32    ? launch_write<Dtype::kFloat32>
                      : task.stored == Dtype::kBFloat16 ? launch_write<Dtype::kBFloat16>
                                                        : launch_write<Dtype::kFloat16>;
  launch(task, reads_nibbles(task), blocks, stream);
}

}  // namespace phiquant::cuda
