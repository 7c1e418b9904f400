// Exact bf16 weights to bf16: a warp takes blocks of 8 rows, strip by strip.
#include "exact_strips.h"

#include "exact_walk.cuh"
#include "places.cuh"
#include "stages.cuh"

namespace phiquant::cuda {
namespace {

#ifndef PQ_THREADS
#define PQ_THREADS 640
#endif
#ifndef PQ_COPIES
#define PQ_COPIES 8
#endif
constexpr int kThreads = PQ_THREADS;
constexpr int kWarps = kThreads / 32;

// A block of 512 columns of a lane's row.
struct DecodePlace {
  int row, block;  // of the weight
  int64_t to;      // of the result; -1 if this lane has no row
};

// Where blocks are, and what becomes of their weights.
struct Decoder {
  const DecodeTask& task;
  const StripShape& shape;
  int lane;
  bool aligned;  // octets of the result, to 16 bytes

  __device__ __forceinline__ DecodePlace where(int n) const {
    const int64_t row = int64_t{n / shape.blocks} * kStripRows + lane / 4;
    const bool there = row < task.count;
    return {static_cast<int>(stored_row(task, there ? row : task.count - 1)), n % shape.blocks,
            there ? row * shape.columns : -1};
  }

  struct Nothing {};
  __device__ __forceinline__ Nothing before(int, int) const { return {}; }

  __device__ __forceinline__ void strip(const DecodePlace& place, int column, int left,
                                        const uint32_t (&pairs)[2][4], Nothing) const {
    if (place.to < 0) return;
    auto* to = static_cast<uint16_t*>(task.out) + place.to + column + (lane & 3) * kOctet;
    if (aligned && left >= 32 + kOctet) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const uint32_t(&of)[4] = pairs[half];
        asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"  // the compiler would part it
                     :
                     : "l"(to + 32 * half), "r"(of[0]), "r"(of[1]), "r"(of[2]), "r"(of[3])
                     : "memory");
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < 2 * kOctet; i++) {
      const int half = i / kOctet, at = half * 32 + i % kOctet;
      const uint32_t pair = pairs[half][i % kOctet / 2];
      if (at < left) to[at] = static_cast<uint16_t>(i & 1 ? pair >> 16 : pair);
    }
  }

  __device__ __forceinline__ void ended(int) const {}
};

template <int copies>
__global__ void __launch_bounds__(kThreads, 1)
    decode_blocks(const __grid_constant__ DecodeTask task, const __grid_constant__ StripShape shape,
                  int blocks, bool aligned) {
  using Table = EdgeTable<copies>;
  extern __shared__ __align__(128) uint8_t table[];
  const int lane = lane_of_thread(), warp = static_cast<int>(threadIdx.x) / 32;
  Table::fill(table, warp, kWarps, lane);
  __syncthreads();
  const int worker = warp * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x);
  const int workers = kWarps * static_cast<int>(gridDim.x);
  const int share = blocks / workers, more = blocks % workers;
  const int begin = worker * share + min(worker, more);
  Decoder decoder{task, shape, lane, aligned};
  const Walk walk{shape, task.planes, task.remainder, lane};
  walk.run<Table>(table, begin, begin + share + (worker < more ? 1 : 0), decoder);
}

}  // namespace

bool has_edge_table(const Layout& layout, const Planes& planes, const Remainder& remainder,
                    int64_t rows) {
  return remainder.stored == Dtype::kBFloat16 && layout.deviation_bits == 4 &&
         layout.group_size >= kStripColumns && layout.exponent >= kLeastEdgeExponent &&
         layout.exponent <= kMostEdgeExponent && has_nibbles(layout, planes) &&
         rows * groups_of(layout) * layout.group_size <= int64_t{1} << 33;
}

void decode_strips(const DecodeTask& task, cudaStream_t stream) {
  const StripShape shape(task.layout);
  const int64_t blocks = (task.count + kStripRows - 1) / kStripRows * shape.blocks;
  const bool aligned =
      (reinterpret_cast<uintptr_t>(task.out) & 15) == 0 && task.layout.columns % kOctet == 0;
  constexpr int kCopies = PQ_COPIES;
  const auto kernel = decode_blocks<kCopies>;
  constexpr int kBytes = EdgeTable<kCopies>::kBytes;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  const auto grid = static_cast<unsigned>(attribute(cudaDevAttrMultiProcessorCount));
  kernel<<<grid, kThreads, kBytes, stream>>>(task, shape, static_cast<int>(blocks), aligned);
}

}  // namespace phiquant::cuda
