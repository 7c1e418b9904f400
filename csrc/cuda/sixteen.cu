// Which products the kernel of up to 16 rows of x takes, and how they are cut.
#include "sixteen.h"

#include "sixteen_launch.cuh"

namespace phiquant::cuda {
namespace {

constexpr int kFewestRows = 5;             // fewer are multiplied as fast by product.cu's kernel
constexpr int64_t kManyWeights = 1 << 25;  // but of so many weights with 4 deviation bits
constexpr int kMostExponent = 64;  // of scales: what sums are multiplied with stays within fp32

// The same for any number of rows of x, so that a row's sums are.
SixteenCut best_cut(const SixteenPlan& plan) {
  const SixteenCut one = cut_into(plan, 1);
  if (plan.groups <= kQuad) return one;
  const SixteenCut two = cut_into(plan, 2);
  if (!two.fits()) return one;
  return !one.fits() || two.cost < one.cost ? two : one;
}

SixteenPlan plan_of(const ProductTask& task) {
  SixteenPlan plan{};
  plan.task = task;
  plan.groups = static_cast<int>(groups_of(task.layout));
  plan.tiles = static_cast<int>((task.out_features + kSixteen - 1) / kSixteen);
  plan.whole_groups = task.layout.columns % kColumn == 0;
  return plan;
}

}  // namespace

bool multiplies_sixteen(const ProductTask& task) {
  const Layout& layout = task.layout;
  const bool format = layout.index_bits == 4 && layout.deviation_bits <= 4 &&
                      layout.grid == GridName::kPhi && layout.group_size == kColumn &&
                      layout.exponent <= kMostExponent && layout.exponent >= -kMostExponent &&
                      task.remainder.payload == nullptr;
  if (!format || task.dtype == Dtype::kFloat32) return false;
  const bool many =
      layout.deviation_bits == 4 && task.out_features * layout.columns >= kManyWeights;
  if (task.m < (many ? 1 : kFewestRows) || task.m > kSixteen) return false;
  return attribute(cudaDevAttrComputeCapabilityMajor) >= 9 && layout.columns < (int64_t{1} << 24) &&
         task.out_features < (int64_t{1} << 28) && can_map(x_of(task)) && can_map(index_of(task)) &&
         (layout.deviation_bits == 0 || can_map(deviation_of(task))) &&
         best_cut(plan_of(task)).fits();
}

void multiply_sixteen(const ProductTask& task, cudaStream_t stream) {
  const SixteenPlan plan = plan_of(task);
  const SixteenCut cut = best_cut(plan);
  switch (task.layout.deviation_bits) {
    case 0:
      return launch_sixteen_0(plan, cut, stream);
    case 2:
      return launch_sixteen_2(plan, cut, stream);
    default:
      return launch_sixteen_4(plan, cut, stream);
  }
}

}  // namespace phiquant::cuda
