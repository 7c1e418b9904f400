// Products of at most 16 rows of x with an exact bf16 weight: a warp decodes blocks of 8 rows,
// strip by strip, and the tensor cores multiply what is in its registers. Blocks of threads stay,
// one a multiprocessor: a tile is 8 rows, tiles are taken in turn, and their 512-column blocks are
// shared out evenly among the warps. Counted in machine code, 8 rows of x: 16.4 instructions a
// weight find it, 4.5 are a strip's codes, scale, x and loop, 1 a block's, in all 22; 4 steps of
// shared memory for its edges.
#include "exact_strips.h"
#include "exact_walk.cuh"
#include "stages.cuh"
#include "sums.cuh"

namespace phiquant::cuda {
namespace {

constexpr int kMostWarps = 16;
constexpr int kRows = 8;  // of a tile, and of a strip
using Table = EdgeTable<8>;
constexpr int kMostTiles = 48;  // of a block: their sums have to find room

// How the 512-column blocks of a block's tiles are shared out.
struct TileCut {
  int tiles, blocks;  // blocks: of a tile
  int share, more;    // blocks of a warp, but of the first `more` warps, which have one more

  __device__ __forceinline__ TileCut(int64_t out_features, int blocks_of_row, int warps)
      : blocks(blocks_of_row) {
    const auto all = static_cast<int>((out_features + kRows - 1) / kRows);
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
    return (blockIdx.x + int64_t{tile} * gridDim.x) * kRows;
  }
};

// sums += a . b: 8 rows of weights, lane / 4, times 8 rows of x, of the same lanes; a lane has
// {weight lane / 4} x {x 2 (lane % 4), and the next}.
__device__ __forceinline__ void multiply(float (&sums)[4], uint32_t low, uint32_t high, uint32_t x0,
                                         uint32_t x1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %5}, "
      "{%7, %8}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(low), "r"(0), "r"(high), "r"(x0), "r"(x1));
}

struct ProductPlace {
  int row, block, tile;
};

// A warp's part of the product, of `eights` times 8 rows of x.
template <int eights, bool aligned>  // aligned: octets of x, to 16 bytes
struct Multiplier {
  static constexpr int kMost = 8 * eights;     // rows of x
  static constexpr int kSums = kMost * kRows;  // of a tile

  const ProductTask& task;
  const StripShape& shape;
  int lane, warp;
  const uint16_t* x[eights];  // this lane's rows, from its first columns on
  float* partial;             // warp w leaves its sums of tile t at w + t
  float sums[eights][2][4];   // two, so that few tensor operations wait for each other

  __device__ __forceinline__ void begin() {
#pragma unroll
    for (int eight = 0; eight < eights; eight++) {
      // What the rows that are not there are multiplied to is never stored.
      const int64_t m = min(int64_t{lane / 4 + 8 * eight}, task.m - 1);
      x[eight] =
          static_cast<const uint16_t*>(task.x) + m * shape.columns + (lane & 3) * kLaneWeights;
    }
    clear();
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 8 * eights; i++) sums[i / 8][i / 4 % 2][i % 4] = 0;
  }

  __device__ __forceinline__ ProductPlace place_of(int tile, int block) const {
    const int64_t row = TileCut::first_row(tile) + lane / 4;
    return {static_cast<int>(min(row, task.out_features - 1)), block, tile};
  }
  __device__ __forceinline__ void advance(ProductPlace* place) const {
    if (++place->block < shape.blocks) return;
    *place = place_of(place->tile + 1, 0);
  }

  struct Rows {
    uint32_t of[eights][kLaneWeights / 2];
  };
  __device__ __forceinline__ Rows before(int column) const {
    Rows asked;
    const bool whole = aligned && column + 4 * kLaneWeights <= shape.columns;
    const int left = shape.columns - column - (lane & 3) * kLaneWeights;
#pragma unroll
    for (int eight = 0; eight < eights; eight++) {
      const uint16_t* const from = x[eight] + column;
      if (whole) {
#pragma unroll
        for (int i = 0; i < 2; i++)
          reinterpret_cast<uint4*>(asked.of[eight])[i] =
              __ldg(reinterpret_cast<const uint4*>(from) + i);
        continue;
      }
#pragma unroll
      for (int i = 0; i < kLaneWeights; i += 2) {
        const uint32_t low = i < left ? __ldg(from + i) : 0;
        const uint32_t high = i + 1 < left ? __ldg(from + i + 1) : 0;
        asked.of[eight][i / 2] = low | high << 16;
      }
    }
    return asked;
  }

  __device__ __forceinline__ void strip(const ProductPlace&, int, int,
                                        const uint32_t (&pairs)[2][4], const Rows& asked) {
#pragma unroll
    for (int eight = 0; eight < eights; eight++) {
#pragma unroll
      for (int i = 0; i < kLaneWeights / 2; i += 2) {
        multiply(sums[eight][i / 4], pairs[i / 4][i % 4], pairs[i / 4][i % 4 + 1],
                 asked.of[eight][i], asked.of[eight][i + 1]);
      }
    }
  }

  // Of the tile, too, or of what this warp has of it.
  __device__ __forceinline__ void ended(const ProductPlace& place, const ProductPlace& next,
                                        bool last) {
    if (!last && next.tile == place.tile) return;
    float* to = partial + (warp + place.tile) * kSums + lane / 4 * kMost + (lane & 3) * 2;
#pragma unroll
    for (int i = 0; i < 2 * eights; i++)
      to[i / 2 * 8 + i % 2] = sums[i / 2][0][i % 2] + sums[i / 2][1][i % 2];
    clear();
  }
};

// Sums of a tile come from the warps that have blocks of it, in their order.
template <int most>
__device__ __forceinline__ void store_tiles(const ProductTask& task, const TileCut& cut,
                                            const float* partial) {
  constexpr int kSums = most * kRows;
  for (int i = static_cast<int>(threadIdx.x); i < cut.tiles * kSums;
       i += static_cast<int>(blockDim.x)) {
    const int tile = i / kSums, j = i % kSums, m = j % most;
    const int64_t row = cut.first_row(tile) + j / most;
    if (m >= task.m || row >= task.out_features) continue;
    const int last = cut.warp_of((tile + 1) * cut.blocks - 1);
    float sum = 0;
    for (int warp = cut.warp_of(tile * cut.blocks); warp <= last; warp++)
      sum += partial[(warp + tile) * kSums + j];
    store_sum<__nv_bfloat16>(task, m, row, sum);
  }
}

template <int eights, bool aligned>
__global__ void __launch_bounds__(kMostWarps * 32, 1)
    product_strips(const __grid_constant__ ProductTask task,
                   const __grid_constant__ StripShape shape) {
  using Part = Multiplier<eights, aligned>;
  extern __shared__ __align__(128) uint8_t memory[];
  auto* const partial = reinterpret_cast<float*>(memory + Table::kBytes);
  const int lane = lane_of_thread(), warp = static_cast<int>(threadIdx.x) / 32;
  const int warps = static_cast<int>(blockDim.x) / 32;
  Table::fill(memory, warp, warps, lane);
  __syncthreads();
  const TileCut cut(task.out_features, shape.blocks, warps);
  const int begin = cut.begin(warp);
  Part part{task, shape, lane, warp, {}, partial, {}};
  part.begin();
  const Walk<Table, kRows> walk{shape, task.planes, task.remainder, memory, lane};
  walk.run(part.place_of(begin / cut.blocks, begin % cut.blocks), cut.begin(warp + 1) - begin,
           part);
  __syncthreads();
  store_tiles<Part::kMost>(task, cut, partial);
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

template <int eights, bool aligned>
void launch(const ProductTask& task, cudaStream_t stream) {
  const StripShape shape(task.layout, task.out_features);
  const auto tiles = static_cast<int>((task.out_features + kRows - 1) / kRows);
  const int most = attribute(cudaDevAttrMultiProcessorCount);
  const int turns = (tiles + most * kMostTiles - 1) / (most * kMostTiles);
  const int grid = tiles < most * turns ? tiles : most * turns;
  const int busiest = (tiles + grid - 1) / grid, warps = warps_for(busiest * shape.blocks);
  const int sums = (warps + busiest) * 8 * eights * kRows * static_cast<int>(sizeof(float));
  const int bytes = Table::kBytes + sums;
  const auto kernel = product_strips<eights, aligned>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  kernel<<<static_cast<unsigned>(grid), warps * 32, static_cast<size_t>(bytes), stream>>>(task,
                                                                                          shape);
}

}  // namespace

bool multiplies_strips(const ProductTask& task) {
  return task.dtype == Dtype::kBFloat16 && task.m <= 16 &&
         has_edge_table(task.layout, task.planes, task.remainder, task.out_features);
}

void multiply_strips(const ProductTask& task, cudaStream_t stream) {
  const bool aligned =
      (reinterpret_cast<uintptr_t>(task.x) & 15) == 0 && task.layout.columns % kOctet == 0;
  const auto launch_it = task.m <= 8 ? (aligned ? launch<1, true> : launch<1, false>)
                                     : (aligned ? launch<2, true> : launch<2, false>);
  launch_it(task, stream);
}

}  // namespace phiquant::cuda
