// Which products the kernel of 5 to 16 rows of x takes, and how they are cut.
#include "sixteen.h"

#include "many_rows_map.h"
#include "sixteen_kernel.cuh"

namespace phiquant::cuda {
namespace {

constexpr int kFewestRows = 5;     // fewer are multiplied as fast without copies of x
constexpr int kMostExponent = 64;  // of scales: what sums are multiplied with stays within fp32
constexpr int kFewestUnits = 2;    // of a ring

int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// Clusters of one or two blocks, tiles of a pass, units of a ring (too few if there is no room),
// and how long that may take, in columns of a warp.
struct SixteenCut {
  int clusters, blocks, tall, units, bytes;
  double cost;
};

template <int eights>
SixteenCut cut_into(const SixteenPlan& plan, int blocks) {
  const int room = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - 2048;
  const int most = attribute(cudaDevAttrMultiProcessorCount) / blocks;
  const int clusters = plan.tiles < most ? plan.tiles : most;
  const int columns = ceil_div(ceil_div(plan.groups, kBoxColumns), blocks) * kBoxColumns;
  const int tiles = ceil_div(plan.tiles, clusters);
  for (int passes = ceil_div(tiles, kMostTall);; passes++) {
    const int tall = ceil_div(tiles, passes), of_unit = columns_of_unit(tall);
    const int unit = SixteenUnit<eights>::bytes(tall, of_unit);
    const int scales = SixteenRoom<eights>::scales(tall, columns);
    const int fit = room > scales ? (room - scales) / unit : 0;
    if (fit < kFewestUnits && tall > 1) continue;
    const int units = fit < kMostUnits ? fit : kMostUnits;
    const int ring = scales + units * unit, sums = SixteenRoom<eights>::sums(tall);
    // A pass has to begin and to end; x comes from the L2 cache for every block.
    const int of_warp = ceil_div(columns, of_unit) * (of_unit / parts_of(tall));
    const double cost = passes * (of_warp * (1 + 0.1 * parts_of(tall)) + 2) + blocks;
    return {clusters, blocks, tall, units, (ring > sums ? ring : sums) + 1024, cost};
  }
}

// The same for any number of rows of x, so that a row's sums are.
SixteenCut best_cut(const SixteenPlan& plan) {
  const SixteenCut one = cut_into<2>(plan, 1);
  if (plan.groups <= kBoxColumns) return one;
  const SixteenCut two = cut_into<2>(plan, 2);
  if (two.units < kFewestUnits) return one;
  return one.units < kFewestUnits || two.cost < one.cost ? two : one;
}

SixteenPlan plan_of(const ProductTask& task) {
  SixteenPlan plan{};
  plan.task = task;
  plan.groups = static_cast<int>(groups_of(task.layout));
  plan.tiles = ceil_div(task.out_features, kSixteen);
  return plan;
}

Matrix index_of(const ProductTask& task) {
  const int64_t bytes = row_bytes(task.layout, 4);
  return {task.planes.index, task.out_features, bytes, bytes, 1};
}
Matrix x_of(const ProductTask& task) {
  return {task.x, task.m, task.layout.columns, task.layout.columns * 2, 2};
}

template <class T, int eights, int parts>
void launch_parts(SixteenPlan plan, const SixteenCut& cut, cudaStream_t stream) {
  plan.tall = cut.tall;
  plan.units = cut.units;
  plan.aligned_words = plan.groups % (8 * cut.blocks) == 0 &&
                       (reinterpret_cast<uintptr_t>(plan.task.planes.scale) & 15) == 0;
  const SixteenMaps maps{map_boxes(x_of(plan.task), 8 * eights, kColumn),
                         map_boxes(index_of(plan.task), cut.tall * kSixteen, 128)};
  const auto kernel = sixteen_rows<T, eights, parts>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, cut.bytes);
  launch_overlapping_clusters(kernel, static_cast<unsigned>(cut.clusters * cut.blocks),
                              static_cast<unsigned>(cut.blocks), kSixteenThreads, cut.bytes, stream,
                              plan, maps);
}

template <class T, int eights>
void launch(const SixteenPlan& plan, cudaStream_t stream) {
  const SixteenCut cut = best_cut(plan);
  switch (parts_of(cut.tall)) {
    case 2:
      return launch_parts<T, eights, 2>(plan, cut, stream);
    case 4:
      return launch_parts<T, eights, 4>(plan, cut, stream);
    case 8:
      return launch_parts<T, eights, 8>(plan, cut, stream);
    default:
      return launch_parts<T, eights, 16>(plan, cut, stream);
  }
}

template <class T>
void launch_rows(const SixteenPlan& plan, cudaStream_t stream) {
  if (plan.task.m <= 8) return launch<T, 1>(plan, stream);
  launch<T, 2>(plan, stream);
}

}  // namespace

bool multiplies_sixteen(const ProductTask& task) {
  const Layout& layout = task.layout;
  const bool format = layout.index_bits == 4 && layout.deviation_bits == 0 &&
                      layout.grid == GridName::kPhi && layout.group_size == kColumn &&
                      layout.exponent <= kMostExponent && layout.exponent >= -kMostExponent &&
                      task.remainder.payload == nullptr;
  if (!format || task.dtype == Dtype::kFloat32) return false;
  if (task.m < kFewestRows || task.m > kSixteen) return false;
  return attribute(cudaDevAttrComputeCapabilityMajor) >= 9 && layout.columns < (int64_t{1} << 24) &&
         task.out_features < (int64_t{1} << 28) && can_map(x_of(task)) && can_map(index_of(task)) &&
         best_cut(plan_of(task)).units >= kFewestUnits;
}

void multiply_sixteen(const ProductTask& task, cudaStream_t stream) {
  const SixteenPlan plan = plan_of(task);
  if (task.dtype == Dtype::kBFloat16) return launch_rows<__nv_bfloat16>(plan, stream);
  launch_rows<__half>(plan, stream);
}

}  // namespace phiquant::cuda
