// Which products of few rows a kernel takes, and how many of them at a time.
#include <algorithm>

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

template <int deviation, int rows>
ProductGrid grid_for(const ProductTasks& tasks) {
  using Shaped = Shape<deviation, rows>;
  const int groups = groups_in(tasks.of[0].layout);
  return {tasks, 256 / rows, Shaped::kMostWarps, room(), [=](int warps, int segments) {
            return Parts(groups, rows, warps * Shaped::Stages::kBytes, segments).end;
          }};
}

template <int deviation>
bool fits(const ProductTasks& tasks, int rows) {
  if (rows == 1) return grid_for<deviation, 1>(tasks).warps > 0;
  if (rows == 2) return grid_for<deviation, 2>(tasks).warps > 0;
  return (rows == 4 ? grid_for<deviation, 4>(tasks) : grid_for<deviation, 8>(tasks)).warps > 0;
}

bool fits(const ProductTasks& tasks, int rows) {
  switch (tasks.of[0].layout.deviation_bits) {
    case 0:
      return fits<0>(tasks, rows);
    case 2:
      return fits<2>(tasks, rows);
    case 4:
      return fits<4>(tasks, rows);
    default:
      return fits<8>(tasks, rows);
  }
}

template <int deviation, int rows, bool brain>
void launch(const ProductTasks& tasks, cudaStream_t stream) {
  const ProductGrid grid = grid_for<deviation, rows>(tasks);
  const auto kernel = product<deviation, rows, brain>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, grid.bytes);
  launch_overlapping(kernel, static_cast<unsigned>(grid.shares.blocks()), grid.warps * 32,
                     grid.bytes, stream, products_of(tasks, grid.shares),
                     groups_in(tasks.of[0].layout), grid.segments);
}

template <int deviation, bool brain>
void launch_rows(const ProductTasks& tasks, int rows, cudaStream_t stream) {
  switch (rows) {
    case 1:
      return launch<deviation, 1, brain>(tasks, stream);
    case 2:
      return launch<deviation, 2, brain>(tasks, stream);
    case 4:
      return launch<deviation, 4, brain>(tasks, stream);
    default:
      return launch<deviation, 8, brain>(tasks, stream);
  }
}

template <int deviation>
void launch_type(const ProductTasks& tasks, int rows, cudaStream_t stream) {
  if (tasks.of[0].dtype == Dtype::kBFloat16)
    return launch_rows<deviation, true>(tasks, rows, stream);
  launch_rows<deviation, false>(tasks, rows, stream);
}

void launch_part(const ProductTasks& tasks, int rows, cudaStream_t stream) {
  switch (tasks.of[0].layout.deviation_bits) {
    case 0:
      return launch_type<0>(tasks, rows, stream);
    case 2:
      return launch_type<2>(tasks, rows, stream);
    case 4:
      return launch_type<4>(tasks, rows, stream);
    default:
      return launch_type<8>(tasks, rows, stream);
  }
}

bool multiplies_up_to_eight(const ProductTask& task) {
  const Layout& layout = task.layout;
  const auto at = [](const void* plane) { return reinterpret_cast<uintptr_t>(plane); };
  const uintptr_t places =
      at(task.planes.index) | at(task.planes.deviation) | at(task.planes.deviation_low);
  return places % 16 == 0 && layout.index_bits == 4 && layout.grid == GridName::kPhi &&
         layout.group_size == kGroup && task.dtype != Dtype::kFloat32 && task.m <= kMostRows &&
         layout.columns < (int64_t{1} << 24);
}

// `rows` rows of x and of the products from row `begin` on, or as many as there are.
ProductTasks rows_of(ProductTasks tasks, int64_t begin, int64_t rows) {
  for (int i = 0; i < tasks.count; i++) {
    ProductTask& task = tasks.of[i];
    task.x = static_cast<const uint16_t*>(task.x) + begin * task.layout.columns;
    task.out = static_cast<uint16_t*>(task.out) + begin * task.out_features;
    task.m = std::min(task.m - begin, rows);
  }
  return tasks;
}

ProductTasks only(const ProductTask& task) { return {{task}, 1}; }

}  // namespace

// A second pass costs as much as a second kernel, which begins while the first one ends.
bool multiplies(const ProductTasks& tasks) {
  if (multiplies_sixteen(tasks)) return tasks.count == 1 || fit_one_pass(tasks);
  return std::all_of(tasks.of, tasks.of + tasks.count, multiplies_up_to_eight) && fits(tasks, 1);
}
bool multiplies(const ProductTask& task) { return multiplies(only(task)); }

// Rows that do not fit into shared memory together are multiplied one after the other.
void multiply(const ProductTasks& tasks, cudaStream_t stream) {
  if (multiplies_indices(tasks)) return multiply_indices(tasks, stream);
  if (multiplies_sixteen(tasks)) return multiply_sixteen(tasks, stream);
  const int64_t m = tasks.of[0].m;
  int rows = 1;
  while (rows < m && fits(tasks, 2 * rows)) rows *= 2;
  for (int64_t done = 0; done < m; done += rows) {
    launch_part(rows_of(tasks, done, rows), rows, stream);
  }
}
void multiply(const ProductTask& task, cudaStream_t stream) { multiply(only(task), stream); }

}  // namespace phiquant::cuda
