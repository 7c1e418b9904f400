// Products of at most 16 rows of x with an exact bf16 weight: a warp decodes blocks of 8 rows, strip
// by strip, and the tensor cores multiply what is in its registers. Blocks of threads stay, one a
// multiprocessor: a tile is 8 rows, tiles are taken in turn, and their 512-column blocks are shared
// out evenly among the warps.
#include "exact_strips.h"
#include "exact_walk.cuh"
#include "stages.cuh"
#include "sums.cuh"

namespace phiquant::cuda {
namespace {

#ifndef PQ_WARPS
#define PQ_WARPS 20
#endif
#ifndef PQ_COPIES
#define PQ_COPIES 8
#endif
constexpr int kMostWarps = PQ_WARPS;
constexpr int kMostTiles = 48;  // of a block: their sums have to find room

// How the 512-column blocks of a block's tiles are shared out.
struct TileCut {
  int tiles, blocks;  // blocks: of a tile
  int share, more;    // blocks of a warp, but of the first `more` warps, which have one more

  __device__ __forceinline__ TileCut(int64_t out_features, int blocks_of_row, int warps)
      : blocks(blocks_of_row) {
    const auto all = static_cast<int>((out_features + kStripRows - 1) / kStripRows);
    const auto grid = static_cast<int>(gridDim.x);
    tiles = (all - static_cast<int>(blockIdx.x) + grid - 1) / grid;
    share = tiles * blocks / warps;
    more = tiles * blocks % warps;
  }
  __device__ __forceinline__ int begin(int warp) const { return warp * share + min(warp, more); }
  __device__ __forceinline__ int warp_of(int block) const {
    const int first = more * (share + 1);
    return block < first ? block / (share + 1) : more + (block - first) / share;
  }
  static __device__ __forceinline__ int64_t first_row(int tile) {
    return (blockIdx.x + int64_t{tile} * gridDim.x) * kStripRows;
  }
};

// sums[x's row][weight's row] += x . weights; 4 columns a lane: {0, 1} and {2, 3}. x has rows
// lane / 4 and 8 more, of columns as the weights.
__device__ __forceinline__ void multiply(float (&sums)[4], const uint32_t (&x)[4], uint32_t low,
                                         uint32_t high) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(low), "r"(high));
}

struct ProductPlace {
  int row, block;
};

template <int rows>
struct Multiplier {
  static constexpr int kEights = rows / 8;
  static constexpr int kSums = rows * kStripRows;  // of a tile

  const ProductTask& task;
  const StripShape& shape;
  const TileCut& cut;
  int lane, warp, end;
  bool aligned;    // octets of x, to 16 bytes
  float* partial;  // warp w leaves its sums of tile t at w + t
  float sums[4];

  __device__ __forceinline__ ProductPlace where(int n) const {
    const int64_t row = TileCut::first_row(n / cut.blocks) + lane / 4;
    return {static_cast<int>(min(row, task.out_features - 1)), n % cut.blocks};
  }

  // Both octets of this lane's rows of x.
  struct Rows {
    uint32_t of[kEights][2][4];
  };
  __device__ __forceinline__ Rows before(int column, int left) const {
    Rows x{};
#pragma unroll
    for (int eight = 0; eight < kEights; eight++) {
      const int m = lane / 4 + 8 * eight;
      if (m >= task.m) continue;
      const auto* from = static_cast<const uint16_t*>(task.x) + int64_t{m} * shape.columns +
                         column + (lane & 3) * kOctet;
#pragma unroll
      for (int half = 0; half < 2; half++) {
        if (aligned && left >= 32 * half + kOctet) {
          *reinterpret_cast<uint4*>(x.of[eight][half]) =
              __ldg(reinterpret_cast<const uint4*>(from + 32 * half));
          continue;
        }
#pragma unroll
        for (int i = 0; i < kOctet; i++) {
          if (32 * half + i < left)
            x.of[eight][half][i / 2] |= static_cast<uint32_t>(__ldg(from + 32 * half + i))
                                        << 16 * (i & 1);
        }
      }
    }
    return x;
  }

  __device__ __forceinline__ void strip(const ProductPlace&, int, int,
                                        const uint32_t (&pairs)[2][4], const Rows& x) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int half = i / 2, at = 2 * (i % 2);
      const uint32_t* const more = x.of[kEights - 1][half] + at;
      const bool both = kEights == 2;
      const uint32_t fragment[4] = {x.of[0][half][at], both ? more[0] : 0, x.of[0][half][at + 1],
                                    both ? more[1] : 0};
      multiply(sums, fragment, pairs[half][at], pairs[half][at + 1]);
    }
  }

  // Of the tile, too, or of what this warp has of it.
  __device__ __forceinline__ void ended(int n) {
    const int tile = n / cut.blocks;
    if (n + 1 < end && (n + 1) / cut.blocks == tile) return;
    float* to = partial + (warp + tile) * kSums + lane / 4 * kStripRows + (lane & 3) * 2;
#pragma unroll
    for (int eight = 0; eight < kEights; eight++, to += 8 * kStripRows) {
      to[0] = sums[2 * eight];
      to[1] = sums[2 * eight + 1];
    }
#pragma unroll
    for (int i = 0; i < 4; i++) sums[i] = 0;
  }
};

// Sums of a tile come from the warps that have blocks of it, in their order.
template <int rows>
__device__ __forceinline__ void store_tiles(const ProductTask& task, const TileCut& cut,
                                            const float* partial) {
  constexpr int kSums = rows * kStripRows;
  for (int i = static_cast<int>(threadIdx.x); i < cut.tiles * kSums;
       i += static_cast<int>(blockDim.x)) {
    const int tile = i / kSums, j = i % kSums, m = j / kStripRows;
    const int64_t row = TileCut::first_row(tile) + j % kStripRows;
    if (m >= task.m || row >= task.out_features) continue;
    const int last = cut.warp_of((tile + 1) * cut.blocks - 1);
    float sum = 0;
    for (int warp = cut.warp_of(tile * cut.blocks); warp <= last; warp++)
      sum += partial[(warp + tile) * kSums + j];
    store_sum<__nv_bfloat16>(task, m, row, sum);
  }
}

template <int copies, int rows>
__global__ void __launch_bounds__(kMostWarps * 32, 1)
    product_strips(const __grid_constant__ ProductTask task,
                   const __grid_constant__ StripShape shape, bool aligned) {
  using Table = EdgeTable<copies>;
  extern __shared__ __align__(128) uint8_t memory[];
  auto* const partial = reinterpret_cast<float*>(memory + Table::kBytes);
  const int lane = lane_of_thread(), warp = static_cast<int>(threadIdx.x) / 32;
  const int warps = static_cast<int>(blockDim.x) / 32;
  Table::fill(memory, warp, warps, lane);
  __syncthreads();
  const TileCut cut(task.out_features, shape.blocks, warps);
  const int end = cut.begin(warp + 1);
  Multiplier<rows> multiplier{task, shape, cut, lane, warp, end, aligned, partial, {}};
  const Walk walk{shape, task.planes, task.remainder, lane};
  walk.run<Table>(memory, cut.begin(warp), end, multiplier);
  __syncthreads();
  store_tiles<rows>(task, cut, partial);
}

// As many warps as leave the least for the busiest; of equal ones most.
int warps_for(int blocks) {
  int best = kMostWarps;
  for (int warps = kMostWarps - 1; warps >= (kMostWarps * 3 + 3) / 4; warps--) {
    const auto cost = [&](int of) { return (blocks + of - 1) / of * of; };
    if (cost(warps) < cost(best)) best = warps;
  }
  return best;
}

template <int rows>
void launch(const ProductTask& task, cudaStream_t stream) {
  constexpr int kCopies = PQ_COPIES;
  const StripShape shape(task.layout);
  const auto tiles = static_cast<int>((task.out_features + kStripRows - 1) / kStripRows);
  const int most = attribute(cudaDevAttrMultiProcessorCount);
  const int turns = (tiles + most * kMostTiles - 1) / (most * kMostTiles);
  const int grid = tiles < most * turns ? tiles : most * turns;
  const int busiest = (tiles + grid - 1) / grid, warps = warps_for(busiest * shape.blocks);
  const int sums = (warps + busiest) * rows * kStripRows * static_cast<int>(sizeof(float));
  const int bytes = EdgeTable<kCopies>::kBytes + sums;
  const bool aligned =
      (reinterpret_cast<uintptr_t>(task.x) & 15) == 0 && task.layout.columns % kOctet == 0;
  const auto kernel = product_strips<kCopies, rows>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  kernel<<<static_cast<unsigned>(grid), warps * 32, static_cast<size_t>(bytes), stream>>>(
      task, shape, aligned);
}

}  // namespace

bool multiplies_strips(const ProductTask& task) {
  return task.dtype == Dtype::kBFloat16 && task.m <= 16 &&
         has_edge_table(task.layout, task.planes, task.remainder, task.out_features);
}

void multiply_strips(const ProductTask& task, cudaStream_t stream) {
  task.m <= 8 ? launch<8>(task, stream) : launch<16>(task, stream);
}

}  // namespace phiquant::cuda
