// Products of at most 16 rows of x with exact bf16 weights, one or as many as have one x: a warp
// decodes blocks of 8 rows, strip by strip, and the tensor cores multiply what is in its registers.
// Blocks of threads stay, one a multiprocessor, and are one weight's: a tile is 8 rows, tiles are
// taken in turn, and their 512-column blocks are shared out evenly among the warps. Counted in
// machine code, up to 4 rows of x: 16 instructions a weight in a strip, 9 of them find its
// sub-cell, 5 its remainder and the rest are codes, scale, x and loop; 4 steps of shared memory for
// its edges.
#include <algorithm>

#include "exact_strips.h"
#include "product_grid.h"
#include "product_multiplier.cuh"
#include "stages.cuh"
#include "sums.cuh"

namespace phiquant::cuda {
namespace {

constexpr int kMostWarps = 16;
constexpr int kRows = TileCut::kRows;
using Table = EdgeTable<8>;
constexpr int kTouchedBytes = kMostWarps * 32 * 4;  // where Walk::touch copies to
constexpr int kMostTiles = 48;                      // of a block: their sums have to find room

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

// `several`: products of one x. `x_bytes`: of x in shared memory.
template <int rows_of_x, XPlace place, bool several>
__global__ void __launch_bounds__(kMostWarps * 32, 1)
    product_strips(const __grid_constant__ Products products,
                   const __grid_constant__ StripShape shape, int x_bytes) {
  using Part = Multiplier<rows_of_x, place>;
  using StripWalk = Walk<Table, kRows, 2, Part::kTouches>;
  extern __shared__ __align__(128) uint8_t memory[];
  uint8_t* const touched = memory + Table::kBytes;
  uint8_t* const shared_x = touched + kTouchedBytes;
  auto* const partial = reinterpret_cast<float*>(shared_x + x_bytes);
  const int lane = lane_of_thread(), warp = static_cast<int>(threadIdx.x) / 32;
  const int warps = static_cast<int>(blockDim.x) / 32, block = static_cast<int>(blockIdx.x);
  const int weight = several ? products.shares.weight_of(block) : 0;
  const ProductTask& task = products.of[weight];
  const BlockOf its = several ? products.shares.among(weight, block) : whole_grid();
  const TileCut cut(task.out_features, its, shape.blocks, warps);
  const int begin = cut.shares.begin(warp);
  const ProductPlace first{begin / cut.blocks, begin % cut.blocks};
  const StripWalk walk{shape,
                       task.planes,
                       task.remainder,
                       memory,
                       lane,
                       StripWalk::last_octet_of(task.out_features, shape),
                       shared_address(touched) + (warp * 32 + lane) * 4};
  const typename Part::X x(task, shape, shared_x, lane);
  Part part{task, shape, cut, lane, warp, partial, x, {}};
  walk.fetch_first(part.row_of(first), first.block);
  Table::fill(memory, warp, warps, lane);
  wait_for_earlier_kernels();
  admit_next_kernel();
  if constexpr (place == XPlace::kShared) x.stage(shape.columns, warp, warps);
  await_all_copies();
  __syncthreads();
  part.clear();
  walk.run(first, cut.shares.begin(warp + 1) - begin, part);
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

int tiles_of(const ProductTask& task) {
  return static_cast<int>((task.out_features + kRows - 1) / kRows);
}

// One block a multiprocessor, or as many for each as its tiles need turns.
BlockShares share(const ProductTasks& tasks) {
  const int most = attribute(cudaDevAttrMultiProcessorCount);
  int tiles[kMostWeights] = {};
  for (int i = 0; i < tasks.count; i++) tiles[i] = tiles_of(tasks.of[i]);
  const int turns = tasks.count == 1 ? (tiles[0] + most * kMostTiles - 1) / (most * kMostTiles) : 1;
  return {tiles, tasks.count, int64_t{most} * turns};
}

// False if there is no room for x in shared memory. Where x is read through the L1 cache, which may
// be stale, the kernel does not begin before the one ahead has ended.
template <int rows_of_x, XPlace place, bool several>
bool launch(const ProductTasks& tasks, cudaStream_t stream) {
  const StripShape shape(tasks.of[0].layout);
  const BlockShares shares = share(tasks);
  const int warps = warps_for(shares.tiles * shape.blocks);
  const int sums = (warps + shares.tiles) * rows_of_x * kRows;
  const int64_t x_bytes =
      place == XPlace::kShared ? RowsOfX<rows_of_x, place>::shared_bytes(shape.columns) : 0;
  const int64_t all =
      Table::kBytes + kTouchedBytes + x_bytes + sums * static_cast<int64_t>(sizeof(float));
  if (all > attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)) return false;
  const auto kernel = product_strips<rows_of_x, place, several>;
  const auto bytes = static_cast<int>(all);
  const auto blocks = static_cast<unsigned>(shares.blocks());
  const Products products = products_of(tasks, shares);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if constexpr (RowsOfX<rows_of_x, place>::kPastL1) {
    launch_overlapping(kernel, blocks, warps * 32, bytes, stream, products, shape,
                       static_cast<int>(x_bytes));
  } else {
    kernel<<<blocks, warps * 32, static_cast<size_t>(bytes), stream>>>(products, shape,
                                                                       static_cast<int>(x_bytes));
  }
  return true;
}

template <int rows_of_x, bool several>
void launch_with(const ProductTasks& tasks, cudaStream_t stream) {
  const ProductTask& task = tasks.of[0];
  const bool aligned =
      (reinterpret_cast<uintptr_t>(task.x) & 15) == 0 && task.layout.columns % kOctet == 0;
  if (aligned) {
    if constexpr (rows_of_x == 8)
      if (launch<rows_of_x, XPlace::kShared, several>(tasks, stream)) return;
    launch<rows_of_x, XPlace::kAligned, several>(tasks, stream);
    return;
  }
  launch<rows_of_x, XPlace::kAny, several>(tasks, stream);
}

template <bool several>
void launch_rows(const ProductTasks& tasks, cudaStream_t stream) {
  const int64_t m = tasks.of[0].m;
  const auto launch_it = m <= 4   ? launch_with<4, several>
                         : m <= 8 ? launch_with<8, several>
                                  : launch_with<16, several>;
  launch_it(tasks, stream);
}

}  // namespace

bool multiplies_strips(const ProductTask& task) {
  const auto at = [](const void* plane) { return reinterpret_cast<uintptr_t>(plane); };
  const bool octets_by_four = ((at(task.planes.index) | at(task.planes.deviation)) & 15) == 0;
  return task.dtype == Dtype::kBFloat16 && task.m <= 16 && octets_by_four &&
         has_edge_table(task.layout, task.planes, task.remainder, task.out_features);
}

bool multiplies_strips(const ProductTasks& tasks) {
  const bool all = std::all_of(tasks.of, tasks.of + tasks.count,
                               [](const ProductTask& task) { return multiplies_strips(task); });
  return all && (tasks.count == 1 || share(tasks).tiles <= kMostTiles);
}

void multiply_strips(const ProductTasks& tasks, cudaStream_t stream) {
  tasks.count == 1 ? launch_rows<false>(tasks, stream) : launch_rows<true>(tasks, stream);
}

}  // namespace phiquant::cuda
