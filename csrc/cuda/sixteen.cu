// Which products the kernel of up to 16 rows of x takes, and how they are cut.
#include "sixteen.h"

#include <algorithm>

#include "sixteen_launch.cuh"

namespace phiquant::cuda {
namespace {

constexpr int kFewestRows = 5;             // fewer are multiplied as fast by product.cu's kernel
constexpr int64_t kManyWeights = 1 << 25;  // but of so many weights with 4 deviation bits
constexpr int kMostExponent = 64;  // of scales: what sums are multiplied with stays within fp32

// The same for any number of rows of x, so that a row's sums are.
SixteenCut best_cut(const SixteenPlans& plans) {
  const SixteenCut one = cut_into(plans, 1);
  if (plans.of[0].groups <= kQuad) return one;
  const SixteenCut two = cut_into(plans, 2);
  if (!two.fits()) return one;
  return !one.fits() || two.cost < one.cost ? two : one;
}

SixteenPlan plan_of(const ProductTask& task) {
  SixteenPlan plan{};
  plan.task = task;
  plan.experts = 1;
  plan.groups = static_cast<int>(groups_of(task.layout));
  plan.tiles = static_cast<int>((task.out_features + kSixteen - 1) / kSixteen);
  plan.whole_groups = task.layout.columns % kColumn == 0;
  return plan;
}

SixteenPlans plans_of(const ProductTasks& tasks) {
  SixteenPlans plans{};
  plans.count = tasks.count;
  for (int i = 0; i < tasks.count; i++) plans.of[i] = plan_of(tasks.of[i]);
  return plans;
}

SixteenPlan plan_of(const GroupedTask& task) {
  SixteenPlan plan = plan_of(ProductTask{task.layout,
                                         task.planes,
                                         {},
                                         task.x,
                                         nullptr,
                                         task.out,
                                         task.dtype,
                                         task.tokens,
                                         task.out_features});
  plan.ends = task.ends;
  plan.experts = static_cast<int>(task.experts);
  return plan;
}

bool takes(const Layout& layout, Dtype dtype) {
  return layout.index_bits == 4 && layout.deviation_bits <= 4 && layout.grid == GridName::kPhi &&
         layout.group_size == kColumn && layout.exponent <= kMostExponent &&
         layout.exponent >= -kMostExponent && dtype != Dtype::kFloat32;
}

// Whether this device can copy operands of that size.
bool can_copy(const SixteenPlan& plan) {
  const ProductTask& task = plan.task;
  return attribute(cudaDevAttrComputeCapabilityMajor) >= 9 &&
         task.layout.columns < (int64_t{1} << 24) && task.m < (int64_t{1} << 24) &&
         task.out_features * plan.experts < (int64_t{1} << 28) && can_map(x_of(plan)) &&
         can_map(index_of(plan)) &&
         (task.layout.deviation_bits == 0 || can_map(deviation_of(plan)));
}

template <bool experts>
void launch(const SixteenPlans& plans, const SixteenCut& cut, cudaStream_t stream) {
  switch (plans.of[0].task.layout.deviation_bits) {
    case 0:
      return launch_sixteen<0, experts>(plans, cut, stream);
    case 2:
      return launch_sixteen<2, experts>(plans, cut, stream);
    default:
      return launch_sixteen<4, experts>(plans, cut, stream);
  }
}

}  // namespace

bool multiplies_sixteen(const ProductTasks& tasks) {
  const ProductTask& task = tasks.of[0];
  const Layout& layout = task.layout;
  if (!takes(layout, task.dtype) || task.remainder.payload != nullptr) return false;
  int64_t out_features = 0;
  for (int i = 0; i < tasks.count; i++) out_features += tasks.of[i].out_features;
  const bool many = layout.deviation_bits == 4 && out_features * layout.columns >= kManyWeights;
  if (task.m < (many ? 1 : kFewestRows) || task.m > kSixteen) return false;
  const SixteenPlans plans = plans_of(tasks);
  return std::all_of(plans.of, plans.of + plans.count, can_copy) && best_cut(plans).fits();
}

bool fit_one_pass(const ProductTasks& tasks) {
  return best_cut(plans_of(tasks)).shares.tiles <= kMostTall;
}

void multiply_sixteen(const ProductTasks& tasks, cudaStream_t stream) {
  const SixteenPlans plans = plans_of(tasks);
  launch<false>(plans, best_cut(plans), stream);
}

bool multiplies_sixteen(const GroupedTask& task) {
  if (!takes(task.layout, task.dtype)) return false;
  const SixteenPlan plan = plan_of(task);
  return can_copy(plan) && cut_experts(plan).fits();
}

void multiply_sixteen(const GroupedTask& task, cudaStream_t stream) {
  const SixteenPlan plan = plan_of(task);
  launch<true>({{plan}, 1, {}}, cut_experts(plan), stream);
}

}  // namespace phiquant::cuda
