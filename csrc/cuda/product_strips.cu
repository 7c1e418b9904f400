// Products of at most 16 rows of x with an exact bf16 weight: a warp decodes blocks of 8 rows,
// strip by strip, and the tensor cores multiply what is in its registers. Blocks of threads stay,
// one a multiprocessor: a tile is 8 rows, tiles are taken in turn, and their 512-column blocks are
// shared out evenly among the warps. Counted in machine code, up to 4 rows of x: 18.8 instructions
// a weight in a strip, 10 of them find its sub-cell, 7 its remainder and the rest are codes, scale,
// x and loop; 4 steps of shared memory for its edges.
#include "exact_strips.h"
#include "product_multiplier.cuh"
#include "stages.cuh"
#include "sums.cuh"

namespace phiquant::cuda {
namespace {

constexpr int kMostWarps = 16;
constexpr int kRows = TileCut::kRows;
using Table = EdgeTable<8>;
using StripWalk = Walk<Table, kRows, 2>;
constexpr int kMostTiles = 48;  // of a block: their sums have to find room

// Sums of a tile come from the warps that have blocks of it, in their order.
template <int rows_of_x>
__device__ __forceinline__ void store_tiles(const ProductTask& task, const TileCut& cut,
                                            const float* partial) {
  constexpr int kSums = rows_of_x * kRows;
  for (int i = static_cast<int>(threadIdx.x); i < cut.tiles * kSums;
       i += static_cast<int>(blockDim.x)) {
    const int tile = i / kSums, j = i % kSums, m = j % rows_of_x;
    const int64_t row = cut.first_row(tile) + j / rows_of_x;
    if (m >= task.m || row >= task.out_features) continue;
    const int last = cut.shares.warp_of((tile + 1) * cut.blocks - 1);
    float sum = 0;
    for (int warp = cut.shares.warp_of(tile * cut.blocks); warp <= last; warp++)
      sum += partial[(warp + tile) * kSums + j];
    store_sum<__nv_bfloat16>(task, m, row, sum);
  }
}

template <int rows_of_x, bool aligned>
__global__ void __launch_bounds__(kMostWarps * 32, 1)
    product_strips(const __grid_constant__ ProductTask task,
                   const __grid_constant__ StripShape shape) {
  using Part = Multiplier<rows_of_x, aligned>;
  extern __shared__ __align__(128) uint8_t memory[];
  auto* const partial = reinterpret_cast<float*>(memory + Table::kBytes);
  const int lane = lane_of_thread(), warp = static_cast<int>(threadIdx.x) / 32;
  const int warps = static_cast<int>(blockDim.x) / 32;
  Table::fill(memory, warp, warps, lane);
  __syncthreads();
  const TileCut cut(task.out_features, shape.blocks, warps);
  const int begin = cut.shares.begin(warp);
  Part part{task, shape, lane, warp, partial, {}, {}};
  part.begin();
  const StripWalk walk{shape, task.planes, task.remainder, memory, lane};
  walk.run(ProductPlace{begin / cut.blocks, begin % cut.blocks}, cut.shares.begin(warp + 1) - begin,
           part);
  __syncthreads();
  store_tiles<rows_of_x>(task, cut, partial);
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

template <int rows_of_x, bool aligned>
void launch(const ProductTask& task, cudaStream_t stream) {
  const StripShape shape(task.layout, task.out_features, StripWalk::kLaneOctets);
  const auto tiles = static_cast<int>((task.out_features + kRows - 1) / kRows);
  const int most = attribute(cudaDevAttrMultiProcessorCount);
  const int turns = (tiles + most * kMostTiles - 1) / (most * kMostTiles);
  const int grid = tiles < most * turns ? tiles : most * turns;
  const int busiest = (tiles + grid - 1) / grid, warps = warps_for(busiest * shape.blocks);
  const int sums = (warps + busiest) * rows_of_x * kRows * static_cast<int>(sizeof(float));
  const int bytes = Table::kBytes + sums;
  const auto kernel = product_strips<rows_of_x, aligned>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  kernel<<<static_cast<unsigned>(grid), warps * 32, static_cast<size_t>(bytes), stream>>>(task,
                                                                                          shape);
}

}  // namespace

bool multiplies_strips(const ProductTask& task) {
  const auto at = [](const void* plane) { return reinterpret_cast<uintptr_t>(plane); };
  const bool octets_by_four = ((at(task.planes.index) | at(task.planes.deviation)) & 15) == 0;
  return task.dtype == Dtype::kBFloat16 && task.m <= 16 && octets_by_four &&
         has_edge_table(task.layout, task.planes, task.remainder, task.out_features);
}

void multiply_strips(const ProductTask& task, cudaStream_t stream) {
  const bool aligned =
      (reinterpret_cast<uintptr_t>(task.x) & 15) == 0 && task.layout.columns % kOctet == 0;
  const auto launch_it = task.m <= 4   ? (aligned ? launch<4, true> : launch<4, false>)
                         : task.m <= 8 ? (aligned ? launch<8, true> : launch<8, false>)
                                       : (aligned ? launch<16, true> : launch<16, false>);
  launch_it(task, stream);
}

}  // namespace phiquant::cuda
