// Products of one x with several weights, which one kernel makes if it can.
#pragma once

#include "cuda_linear.h"
#include "weight_lists.h"

namespace phiquant::cuda {

// Whether all are of one kernel; the results are left in `out`.
inline bool multiply_together(const Layout& layout, const std::vector<CheckedPlanes>& planes,
                              const WeightLists& lists, const Tensor& x, const Shape& leading,
                              const Target& target, Tensors& out) {
  const size_t count = planes.size();
  const int64_t m = product(leading);
  if (count < 2 || count > kMostWeights || m == 0 || !is_half(x.scalar_type())) return false;
  const Tensor rows = dense(x);
  std::vector<OptionalTensor> shifts;  // pointers into them are used below
  const bool exact = planes[0].stored.has_value();
  ProductTasks tasks{};
  for (size_t i = 0; i < count; i++) {
    if (planes[i].rows == 0) return false;
    shifts.push_back(dense_bias(lists.bias_of(i)));
    tasks.of[i] = product_task(layout, planes[i], rows, shifts[i], m);
  }
  tasks.count = static_cast<int>(count);
  if (exact ? !multiplies_exact(tasks) : !multiplies(tasks)) return false;
  for (size_t i = 0; i < count; i++) {
    out.push_back(new_tensor(with_last(leading, planes[i].rows), x.scalar_type(), target));
    tasks.of[i].out = out[i].mutable_data_ptr();
  }
  exact ? multiply_exact(tasks, target.stream()) : multiply(tasks, target.stream());
  check_launch();
  return true;
}

inline Tensors packed_linears(const Tensor& x, const Tensors& index, const Tensors& deviation,
                              const Tensors& deviation_low, const Tensors& scale,
                              const Tensors& remainder, const Tensors& offsets,
                              const Tensors& starts, const Tensors& bias, int64_t columns,
                              int64_t layout) {
  const Packed packed = unpacked(columns, layout);
  const WeightLists lists{index, deviation, deviation_low, scale, remainder, offsets, starts, bias};
  lists.check(packed);
  Tensors out;
  if (lists.count() == 0) return out;
  const Target target(scale[0]);
  std::vector<CheckedPlanes> planes;
  Shape leading;
  for (size_t i = 0; i < lists.count(); i++) {
    planes.push_back(check_planes(lists.planes(i), packed.layout, packed.stored));
    leading = check_operands(packed.layout, planes[i], x, lists.bias_of(i));
  }
  if (multiply_together(packed.layout, planes, lists, x, leading, target, out)) return out;
  for (size_t i = 0; i < lists.count(); i++) {
    out.push_back(linear_of(packed.layout, planes[i], x, lists.bias_of(i), target));
  }
  return out;
}

}  // namespace phiquant::cuda
