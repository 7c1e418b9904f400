// Products of one x with several weights, which one kernel makes if it can.
#pragma once

#include <vector>

#include "cuda_linear.h"

namespace phiquant::cuda {

using Tensors = std::vector<Tensor>;

// An entry of a list that may be empty.
inline OptionalTensor entry(const Tensors& list, size_t i) {
  return list.empty() ? std::nullopt : OptionalTensor(list[i]);
}

inline void check_count(const std::string& name, const Tensors& list, size_t count, bool all) {
  if (list.size() == count || (!all && list.empty())) return;
  fail(name + ": expected " + std::to_string(count) + " tensors, one a weight" +
       (all ? "" : ", or none") + ", got " + std::to_string(list.size()));
}

// Of a compiled graph: lossy weights of one layout.
struct GivenWeights {
  const Tensors &index, &deviation, &deviation_low, &scale, &bias;

  size_t count() const { return index.size(); }
  void check() const {
    if (index.empty()) fail("index: expected a tensor for each weight, got none");
    check_count("scale", scale, count(), true);
    check_count("deviation", deviation, count(), false);
    check_count("deviation_low", deviation_low, count(), false);
    check_count("bias", bias, count(), false);
  }
  GivenPlanes planes(size_t i) const {
    return {index[i],     entry(deviation, i), entry(deviation_low, i),
            scale[i],     std::nullopt,        std::nullopt,
            std::nullopt, std::nullopt};
  }
};

// Whether all are of one kernel; the results are left in `out`.
inline bool multiply_together(const Layout& layout, const std::vector<CheckedPlanes>& planes,
                              const GivenWeights& given, const Tensor& x, const Shape& leading,
                              const Target& target, Tensors& out) {
  const size_t count = planes.size();
  const int64_t m = product(leading);
  if (count < 2 || count > kMostWeights || m == 0 || !is_half(x.scalar_type())) return false;
  const Tensor rows = dense(x);
  std::vector<OptionalTensor> shifts;  // pointers into them are used below
  ProductTasks tasks{};
  for (size_t i = 0; i < count; i++) {
    if (planes[i].rows == 0) return false;
    shifts.push_back(dense_bias(entry(given.bias, i)));
    tasks.of[i] = product_task(layout, planes[i], rows, shifts[i], m);
  }
  tasks.count = static_cast<int>(count);
  if (!multiplies(tasks)) return false;
  for (size_t i = 0; i < count; i++) {
    out.push_back(new_tensor(with_last(leading, planes[i].rows), x.scalar_type(), target));
    tasks.of[i].out = out[i].mutable_data_ptr();
  }
  multiply(tasks, target.stream());
  check_launch();
  return true;
}

inline Tensors packed_linears(const Tensor& x, const Tensors& index, const Tensors& deviation,
                              const Tensors& deviation_low, const Tensors& scale,
                              const Tensors& bias, int64_t columns, int64_t layout) {
  const Packed packed = unpacked(columns, layout);
  const GivenWeights given{index, deviation, deviation_low, scale, bias};
  given.check();
  const Target target(scale[0]);
  std::vector<CheckedPlanes> planes;
  Shape leading;
  for (size_t i = 0; i < given.count(); i++) {
    planes.push_back(check_planes(given.planes(i), packed.layout, packed.stored));
    leading = check_operands(packed.layout, planes[i], x, entry(bias, i));
  }
  Tensors out;
  if (multiply_together(packed.layout, planes, given, x, leading, target, out)) return out;
  for (size_t i = 0; i < given.count(); i++) {
    out.push_back(linear_of(packed.layout, planes[i], x, entry(bias, i), target));
  }
  return out;
}

}  // namespace phiquant::cuda
