// Products of several weights with the same x, of a compiled graph: x is prepared once, and threads
// begin and end once.
#pragma once

#include "cpu_linear.h"
#include "weight_lists.h"

namespace phiquant::cpu {

using Several = std::vector<LinearArguments>;  // of one x and one layout

// Tasks of several weights, and what they point to.
template <class Task>
struct Tasks {
  std::vector<OptionalTensor> biases;
  std::vector<Task> all;

  explicit Tasks(size_t count) {
    biases.reserve(count);
    all.reserve(count);
  }
};

inline Tensors new_outs(const Several& given, ScalarType dtype) {
  Tensors outs;
  outs.reserve(given.size());
  for (const LinearArguments& one : given) outs.push_back(new_out(one, dtype));
  return outs;
}

inline Tensors fused_linears(const Several& given) {
  Tensors outs = new_outs(given, given[0].x.scalar_type());
  Tasks<FusedTask> tasks(given.size());
  for (size_t i = 0; i < given.size(); i++) {
    tasks.biases.push_back(float_bias_of(given[i]));
    tasks.all.push_back(fused_task(given[i], tasks.biases[i], outs[i].mutable_data_ptr()));
  }
  multiply_fused(tasks.all, given[0].x.const_data_ptr());
  return outs;
}

// x is of bf16.
inline Tensors code_linears(const CodeKernels& way, const Several& given, const Tensor& x,
                            bool int8) {
  Tensors outs = new_outs(given, ScalarType::BFloat16);
  Tasks<CodeTask> tasks(given.size());
  for (size_t i = 0; i < given.size(); i++) {
    tasks.biases.push_back(float_bias_of(given[i]));
    tasks.all.push_back(code_task(given[i], tasks.biases[i], outs[i].mutable_data_ptr()));
  }
  return multiply_codes(way, tasks.all, x.const_data_ptr(), int8) ? outs : fused_linears(given);
}

inline Tensors few_rounded_linears(const CodeKernels& way, const Several& given, int64_t count,
                                   bool int8) {
  uint16_t* x = few_as_bfloat16s(given[0], count);
  uint16_t* sums = x + given[0].m * given[0].layout.columns;
  Tasks<CodeTask> tasks(given.size());
  for (const LinearArguments& one : given) {
    tasks.biases.push_back(float_bias_of(one));
    tasks.all.push_back(code_task(one, tasks.biases.back(), sums));
    sums += one.m * one.out_features;
  }
  if (!multiply_codes(way, tasks.all, x, int8)) return fused_linears(given);
  Tensors outs;
  outs.reserve(given.size());
  for (size_t i = 0; i < given.size(); i++) {
    outs.push_back(widened(given[i], static_cast<const uint16_t*>(tasks.all[i].out)));
  }
  return outs;
}

inline Tensors rounded_linears(const CodeKernels& way, const Several& given, bool int8) {
  const Tensor& x = given[0].x;
  const ScalarType dtype = x.scalar_type();
  if (dtype == ScalarType::BFloat16) return code_linears(way, given, x, int8);
  int64_t count = 0;
  for (const LinearArguments& one : given) count += one.m * one.out_features;
  if (are_few(given[0], count)) return few_rounded_linears(way, given, count, int8);
  Tensors outs = code_linears(way, given, torch::stable::to(x, ScalarType::BFloat16), int8);
  for (Tensor& out : outs) out = torch::stable::to(out, dtype);
  return outs;
}

inline Tensors products_of(const Several& given, bool rounded) {
  const auto empty = [](const auto& one) { return one.m == 0 || one.out_features == 0; };
  const bool none = std::any_of(given.begin(), given.end(), empty);
  const Way way = none || given.empty() ? Way{} : way_of(given[0], rounded);
  if (way.codes != nullptr) return rounded_linears(*way.codes, given, way.int8);
  if (way.fused) return fused_linears(given);
  Tensors outs;
  for (const LinearArguments& one : given) {
    outs.push_back(linear_of(one.layout, one.planes, one.x, one.bias, rounded));
  }
  return outs;
}

inline Tensors linears(const Tensor& x, const Tensors& index, const Tensors& deviation,
                       const Tensors& deviation_low, const Tensors& scale, const Tensors& remainder,
                       const Tensors& offsets, const Tensors& starts, const Tensors& bias,
                       int64_t columns, int64_t layout) {
  const Packed packed = unpacked(columns, layout);
  const WeightLists lists{index, deviation, deviation_low, scale, remainder, offsets, starts, bias};
  lists.check(packed);
  check_x(x, columns);
  const Tensor rows = dense(x);
  std::vector<CheckedPlanes> planes;
  Several given;
  planes.reserve(lists.count());  // which keeps them where `given` looks for them
  given.reserve(lists.count());
  for (size_t i = 0; i < lists.count(); i++) {
    const CheckedPlanes& one =
        planes.emplace_back(check_planes(lists.planes(i), packed.layout, packed.stored));
    check_matrix(one);
    given.push_back({packed.layout, one, rows, lists.bias_of(i), rows_of(x), one.rows});
    check_bias(given.back().bias, x.scalar_type(), one.rows);
  }
  return products_of(given, packed.int8);
}

}  // namespace phiquant::cpu
