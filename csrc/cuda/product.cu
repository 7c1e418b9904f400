// Which products of few rows a kernel takes, and how many of them at a time.
#include "product_index.h"
#include "product_kernel.cuh"
#include "sixteen.h"

namespace phiquant::cuda {
namespace {

constexpr int kMostRows = 8;

int groups_in(const Layout& layout) { return static_cast<int>(groups_of(layout)); }

// Shared memory that a block may ask for.
int64_t room() {
  return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) -
         static_cast<int64_t>(sizeof(Shared<kMostRows>));
}

// Blocks of a product, their warps, and how many partial sums a block keeps: one for each of its
// warps and of its tiles. A weight of very many rows has more blocks than there are
// multiprocessors. No warps if not even a few of them have room.
struct Grid {
  static constexpr int kFewWarps = 4;
  int64_t blocks;
  int warps, segments, bytes;

  Grid(const ProductTask& task, int rows, int most_warps, int ring) {
    const int64_t tiles = (task.out_features + kTile - 1) / kTile, most_tiles = 256 / rows;
    blocks = attribute(cudaDevAttrMultiProcessorCount);
    if (blocks * most_tiles < tiles) blocks = (tiles + most_tiles - 1) / most_tiles;
    if (blocks > tiles) blocks = tiles;
    for (warps = most_warps; warps >= kFewWarps; warps--) {
      segments = warps + static_cast<int>((tiles + blocks - 1) / blocks);
      bytes = Parts(groups_in(task.layout), rows, warps * ring, segments).end;
      if (bytes <= room()) return;
    }
    warps = 0;
  }
};

template <int deviation, int rows>
Grid grid_for(const ProductTask& task) {
  using Shaped = Shape<deviation, rows>;
  return Grid(task, rows, Shaped::kMostWarps, Shaped::Stages::kBytes);
}

template <int deviation>
bool fits(const ProductTask& task, int rows) {
  if (rows == 1) return grid_for<deviation, 1>(task).warps > 0;
  if (rows == 2) return grid_for<deviation, 2>(task).warps > 0;
  return (rows == 4 ? grid_for<deviation, 4>(task) : grid_for<deviation, 8>(task)).warps > 0;
}

bool fits(const ProductTask& task, int rows) {
  switch (task.layout.deviation_bits) {
    case 0:
      return fits<0>(task, rows);
    case 2:
      return fits<2>(task, rows);
    case 4:
      return fits<4>(task, rows);
    default:
      return fits<8>(task, rows);
  }
}

template <int deviation, int rows, bool brain>
void launch(const ProductTask& task, cudaStream_t stream) {
  const Grid grid = grid_for<deviation, rows>(task);
  const auto kernel = product<deviation, rows, brain>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, grid.bytes);
  launch_overlapping(kernel, static_cast<unsigned>(grid.blocks), grid.warps * 32, grid.bytes,
                     stream, task, groups_in(task.layout), grid.segments);
}

template <int deviation, bool brain>
void launch_rows(const ProductTask& task, int rows, cudaStream_t stream) {
  switch (rows) {
    case 1:
      return launch<deviation, 1, brain>(task, stream);
    case 2:
      return launch<deviation, 2, brain>(task, stream);
    case 4:
      return launch<deviation, 4, brain>(task, stream);
    default:
      return launch<deviation, 8, brain>(task, stream);
  }
}

template <int deviation>
void launch_type(const ProductTask& task, int rows, cudaStream_t stream) {
  if (task.dtype == Dtype::kBFloat16) return launch_rows<deviation, true>(task, rows, stream);
  launch_rows<deviation, false>(task, rows, stream);
}

void launch_part(const ProductTask& task, int rows, cudaStream_t stream) {
  switch (task.layout.deviation_bits) {
    case 0:
      return launch_type<0>(task, rows, stream);
    case 2:
      return launch_type<2>(task, rows, stream);
    case 4:
      return launch_type<4>(task, rows, stream);
    default:
      return launch_type<8>(task, rows, stream);
  }
}

bool multiplies_up_to_eight(const ProductTask& task) {
  const Layout& layout = task.layout;
  const auto at = [](const void* plane) { return reinterpret_cast<uintptr_t>(plane); };
  const uintptr_t places =
      at(task.planes.index) | at(task.planes.deviation) | at(task.planes.deviation_low);
  return places % 16 == 0 && layout.index_bits == 4 && layout.grid == GridName::kPhi &&
         layout.group_size == kGroup && task.dtype != Dtype::kFloat32 && task.m <= kMostRows &&
         layout.columns < (int64_t{1} << 24) && fits(task, 1);
}

}  // namespace

bool multiplies(const ProductTask& task) {
  return multiplies_sixteen(task) || multiplies_up_to_eight(task);
}

// Rows that do not fit into shared memory together are multiplied one after the other.
void multiply(const ProductTask& task, cudaStream_t stream) {
  if (multiplies_indices(task)) return multiply_indices(task, stream);
  if (multiplies_sixteen(task)) return multiply_sixteen(task, stream);
  int rows = 1;
  while (rows < task.m && fits(task, 2 * rows)) rows *= 2;
  for (int64_t done = 0; done < task.m; done += rows) {
    ProductTask part = task;
    part.x = static_cast<const uint16_t*>(task.x) + done * task.layout.columns;
    part.out = static_cast<uint16_t*>(task.out) + done * task.out_features;
    part.m = task.m - done < rows ? task.m - done : rows;
    launch_part(part, rows, stream);
  }
}

}  // namespace phiquant::cuda
