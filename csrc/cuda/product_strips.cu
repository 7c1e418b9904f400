// Products of at most 16 rows of x with an exact bf16 weight: a warp decodes blocks of a few rows,
// strip by strip, and the tensor cores multiply what is in its registers. Blocks of threads stay, one
// a multiprocessor: a tile is those rows, tiles are taken in turn, and their 512-column blocks are
// shared out evenly among the warps.
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
template <int rows>
struct TileCut {
  int tiles, blocks;  // blocks: of a tile
  int share, more;    // blocks of a warp, but of the first `more` warps, which have one more

  __device__ __forceinline__ TileCut(int64_t out_features, int blocks_of_row, int warps)
      : blocks(blocks_of_row) {
    const auto all = static_cast<int>((out_features + rows - 1) / rows);
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
    return (blockIdx.x + int64_t{tile} * gridDim.x) * rows;
  }
};

// sums += a . b: 16 rows of x, lane / 4 and 8 more, times 8 columns of weights, those of lanes whose
// number divided by 4 is the column's.
__device__ __forceinline__ void multiply(float (&sums)[4], uint32_t x0, uint32_t x1, uint32_t x2,
                                         uint32_t x3, uint32_t low, uint32_t high) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(x0), "r"(x1), "r"(x2), "r"(x3), "r"(low), "r"(high));
}

struct ProductPlace {
  int row, block, tile;
};

// A warp's part of the product. The 16 rows of the tensor operation's left side are, if a strip has
// 8 rows, as many rows of x; if it has 4, 8 rows of x of the first half of the strip's columns, and
// the same of the second half: then every other of its sums has a meaning.
template <int rows>
struct Multiplier {
  static constexpr bool kHalves = rows == 4;
  static constexpr int kMost = kHalves ? 8 : 16;  // rows of x
  static constexpr int kSums = kMost * rows;      // of a tile

  const ProductTask& task;
  const StripShape& shape;
  int lane, warp;
  bool aligned;    // octets of x, to 16 bytes
  float* partial;  // warp w leaves its sums of tile t at w + t
  float sums[4];

  __device__ __forceinline__ ProductPlace place_of(int tile, int block) const {
    const int64_t row = TileCut<rows>::first_row(tile) + lane / (32 / rows);
    return {static_cast<int>(min(row, task.out_features - 1)), block, tile};
  }
  __device__ __forceinline__ void advance(ProductPlace* place) const {
    if (++place->block < shape.blocks) return;
    *place = place_of(place->tile + 1, 0);
  }

  // 16 columns of x for each half of the tensor operation's rows.
  struct Rows {
    uint32_t of[2][kLaneWeights / 2];
  };
  __device__ __forceinline__ void load(const uint16_t* from, int left, uint32_t* x) const {
    if (aligned && left >= kLaneWeights) {
#pragma unroll
      for (int i = 0; i < 2; i++)
        reinterpret_cast<uint4*>(x)[i] = __ldg(reinterpret_cast<const uint4*>(from) + i);
      return;
    }
#pragma unroll
    for (int i = 0; i < kLaneWeights; i++) {
      if (i < left) x[i / 2] |= static_cast<uint32_t>(__ldg(from + i)) << 16 * (i & 1);
    }
  }
  __device__ __forceinline__ Rows before(int column) const {
    Rows x{};
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int m = lane / 4 + (kHalves ? 0 : 8 * half);
      const int at = column + (lane & 3) * kLaneWeights + (kHalves ? 4 * kLaneWeights * half : 0);
      if (m < task.m)
        load(static_cast<const uint16_t*>(task.x) + int64_t{m} * shape.columns + at,
             shape.columns - at, x.of[half]);
    }
    return x;
  }

  __device__ __forceinline__ void strip(const ProductPlace&, int, int,
                                        const uint32_t (&pairs)[2][4], const Rows& x) {
#pragma unroll
    for (int i = 0; i < kLaneWeights / 2; i += 2) {
      multiply(sums, x.of[0][i], x.of[1][i], x.of[0][i + 1], x.of[1][i + 1], pairs[i / 4][i % 4],
               pairs[i / 4][i % 4 + 1]);
    }
  }

  // Of the tile, too, or of what this warp has of it.
  __device__ __forceinline__ void ended(const ProductPlace& place, const ProductPlace& next,
                                        bool last) {
    if (!last && next.tile == place.tile) return;
    float* to = partial + (warp + place.tile) * kSums + lane / 4 * rows;
    if constexpr (kHalves) {
      to[lane & 3] = sums[0] + sums[3];
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++) to[i / 2 * 8 * rows + (lane & 3) * 2 + i % 2] = sums[i];
    }
#pragma unroll
    for (int i = 0; i < 4; i++) sums[i] = 0;
  }
};

// Sums of a tile come from the warps that have blocks of it, in their order.
template <int rows>
__device__ __forceinline__ void store_tiles(const ProductTask& task, const TileCut<rows>& cut,
                                            const float* partial) {
  constexpr int kSums = Multiplier<rows>::kSums;
  for (int i = static_cast<int>(threadIdx.x); i < cut.tiles * kSums;
       i += static_cast<int>(blockDim.x)) {
    const int tile = i / kSums, j = i % kSums, m = j / rows;
    const int64_t row = cut.first_row(tile) + j % rows;
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
  const TileCut<rows> cut(task.out_features, shape.blocks, warps);
  const int begin = cut.begin(warp);
  Multiplier<rows> multiplier{task, shape, lane, warp, aligned, partial, {}};
  const Walk<Table, rows> walk{shape, task.planes, task.remainder, memory, lane};
  walk.run(multiplier.place_of(begin / cut.blocks, begin % cut.blocks), cut.begin(warp + 1) - begin,
           multiplier);
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
  const auto tiles = static_cast<int>((task.out_features + rows - 1) / rows);
  const int most = attribute(cudaDevAttrMultiProcessorCount);
  const int turns = (tiles + most * kMostTiles - 1) / (most * kMostTiles);
  const int grid = tiles < most * turns ? tiles : most * turns;
  const int busiest = (tiles + grid - 1) / grid, warps = warps_for(busiest * shape.blocks);
  const int sums = (warps + busiest) * Multiplier<rows>::kSums * static_cast<int>(sizeof(float));
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
  task.m <= 8 ? launch<4>(task, stream) : launch<8>(task, stream);
}

}  // namespace phiquant::cuda
