// Exact bf16 weights to bf16. Blocks of threads stay, one a multiprocessor, for the sake of their
// table; a warp takes as many 512-column blocks of two rows as any other, one after the other.
// Strips of 8 rows were slower: 128 bytes of a row at a time scatter what is written.
#include "exact_strips.h"

#include "exact_walk.cuh"
#include "places.cuh"
#include "stages.cuh"

namespace phiquant::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kRows = 2;  // of a strip
using Table = EdgeTable<8>;
using StripWalk = Walk<Table, kRows, 1, false>;
constexpr int kStagedBytes = 32 * StripWalk::kLaneWeights * 2;  // a warp's

// A block of 512 columns of a lane's row.
struct DecodePlace {
  int row, block;  // of the weight
  int64_t to;      // row of the result; from task.count on it is not there
};

// Where blocks are, and what becomes of their weights.
struct Decoder {
  const DecodeTask& task;
  const StripShape& shape;
  uint8_t* staged;  // this warp's weights of a strip, 16 bytes an octet
  int lane;
  bool aligned;  // octets of the result, to 16 bytes

  __device__ __forceinline__ DecodePlace place_of(int64_t row, int block) const {
    return {static_cast<int>(stored_row(task, row < task.count ? row : task.count - 1)), block,
            row};
  }
  static __device__ __forceinline__ int row_of(const DecodePlace& place) { return place.row; }
  __device__ __forceinline__ void advance(DecodePlace* place) const {
    if (++place->block < shape.blocks) return;
    *place = place_of(place->to + kRows, 0);
  }

  struct Nothing {};
  template <bool whole>
  __device__ __forceinline__ Nothing before(int) const {
    return {};
  }

  // Octet number n of the warp's 64 lies at n, but every other 8 lie in pairs the other way round:
  // so neither writing two side by side nor reading them in turn meets a bank twice.
  static __device__ __forceinline__ int slot(int octet) { return (octet ^ (octet >> 3 & 1)) * 16; }

  template <bool whole>
  __device__ __forceinline__ void strip(const DecodePlace& place, int column, int left,
                                        const uint32_t (&of_lane)[1][2][4], Nothing) const {
    const uint32_t (&pairs)[2][4] = of_lane[0];
    auto* const to = static_cast<uint16_t*>(task.out) + place.to * shape.columns + column;
    constexpr int kLanes = StripWalk::kLanes;
    if (whole && aligned) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const uint32_t (&of)[4] = pairs[half];
        *reinterpret_cast<uint4*>(staged + slot(2 * lane + half)) = {of[0], of[1], of[2], of[3]};
      }
      __syncwarp();
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int octet = lane / kLanes * 2 * kLanes + half * kLanes + lane % kLanes;
        const uint4 of = *reinterpret_cast<const uint4*>(staged + slot(octet));
        if (place.to < task.count) reinterpret_cast<uint4*>(to)[half * kLanes + lane % kLanes] = of;
      }
      __syncwarp();
      return;
    }
    if (place.to >= task.count) return;
#pragma unroll
    for (int i = 0; i < kSixteen; i++) {
      const uint32_t pair = pairs[i / kOctet][i % kOctet / 2];
      if (i < left)
        to[lane % kLanes * kSixteen + i] = static_cast<uint16_t>(i & 1 ? pair >> 16 : pair);
    }
  }

  __device__ __forceinline__ void ended(const DecodePlace&, const DecodePlace&, bool) const {}
};

__global__ void __launch_bounds__(kThreads, 1)
    decode_blocks(const __grid_constant__ DecodeTask task, const __grid_constant__ StripShape shape,
                  int blocks, bool aligned) {
  extern __shared__ __align__(128) uint8_t table[];
  const int lane = lane_of_thread(), warp = static_cast<int>(threadIdx.x) / 32;
  Table::fill(table, warp, kWarps, lane);
  __syncthreads();
  const int worker = warp * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x);
  const int workers = kWarps * static_cast<int>(gridDim.x);
  const int share = blocks / workers, more = blocks % workers;
  const int begin = worker * share + min(worker, more);
  Decoder decoder{task, shape, table + Table::kBytes + warp * kStagedBytes, lane, aligned};
  const StripWalk walk{shape, task.planes, task.remainder,
                       table, lane,        StripWalk::last_octet_of(task.stored_rows, shape),
                       0};
  const int64_t row = int64_t{begin / shape.blocks} * kRows + lane / walk.kLanes;
  walk.run(decoder.place_of(row, begin % shape.blocks), share + (worker < more ? 1 : 0), decoder);
}

// Two octets are read at once.
bool has_octet_pairs(const Planes& planes) {
  const auto at = [](const void* plane) { return reinterpret_cast<uintptr_t>(plane); };
  return ((at(planes.index) | at(planes.deviation)) & 7) == 0;
}

}  // namespace

bool has_edge_table(const Layout& layout, const Planes& planes, const Remainder& remainder,
                    int64_t rows) {
  constexpr int kRoom = 162 << 10;  // the table, and what kernels have beside it at most
  return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) >= kRoom &&
         remainder.stored == Dtype::kBFloat16 && layout.deviation_bits == 4 &&
         layout.group_size >= 64 && layout.exponent >= kLeastEdgeExponent &&
         layout.exponent <= kMostEdgeExponent && has_octet_pairs(planes) &&
         has_nibbles(layout, planes) &&
         rows * groups_of(layout) * layout.group_size <= int64_t{1} << 33;
}

bool decodes_strips(const DecodeTask& task) {
  constexpr int kFewRows = 64;  // are decoded before a table is made
  return task.dtype == Dtype::kBFloat16 && task.count >= kFewRows &&
         has_edge_table(task.layout, task.planes, task.remainder, task.stored_rows);
}

void decode_strips(const DecodeTask& task, cudaStream_t stream) {
  const StripShape shape(task.layout);
  const int64_t blocks = (task.count + kRows - 1) / kRows * shape.blocks;
  const bool aligned =
      (reinterpret_cast<uintptr_t>(task.out) & 15) == 0 && task.layout.columns % kOctet == 0;
  constexpr int kBytes = Table::kBytes + kWarps * kStagedBytes;
  cudaFuncSetAttribute(decode_blocks, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  const int64_t most = attribute(cudaDevAttrMultiProcessorCount);
  decode_blocks<<<static_cast<unsigned>(blocks < most ? blocks : most), kThreads, kBytes, stream>>>(
      task, shape, static_cast<int>(blocks), aligned);
}

}  // namespace phiquant::cuda
