// x . weight^T on the CPU without a decoded weight, of one weight or of several with the same x:
// codes meet x in a form of its own, on the matrix unit or in integers; or in fp32, in registers.
#pragma once

#include <cstring>
#include <span>

#include "cpu_tasks.h"

namespace phiquant::cpu {

inline constexpr int64_t kTileRows = 16;  // of the weight, which kernels take together

struct LinearArguments {
  const Layout& layout;
  const CheckedPlanes& planes;
  Tensor x;  // [..., columns], contiguous
  OptionalTensor bias;
  int64_t m;  // rows of x
  int64_t out_features;
};

// For the product, of x's leading dimensions: a reshape is looked up by its name.
inline Tensor new_out(const LinearArguments& given, ScalarType dtype) {
  Shape shape = shape_of(given.x);
  shape.back() = given.out_features;
  return new_tensor(shape, dtype);
}

inline OptionalTensor float_bias_of(const LinearArguments& given) {
  if (!given.bias.has_value()) return std::nullopt;
  return float_bias(*given.bias);
}

// The rows of all weights are shared out to threads at once: to begin and to wait for the last one
// takes as long as a small product. No tile has rows of two weights.
template <class Task>
void over_weights(std::span<const Task> tasks, Status (*multiply)(const Task&, int64_t, int64_t)) {
  int64_t rows = 0;
  for (const Task& task : tasks) rows += rounded_up(task.out_features, kTileRows);
  const Layout& layout = tasks[0].layout;
  const auto run = [&](int64_t begin, int64_t end) {
    Status worst = Status::kOk;
    for (const Task& task : tasks) {
      const int64_t first = std::max<int64_t>(begin, 0), last = std::min(end, task.out_features);
      const Status status = first < last ? multiply(task, first, last) : Status::kOk;
      if (status != Status::kOk) worst = status;
      const int64_t taken = rounded_up(task.out_features, kTileRows);
      begin -= taken;
      end -= taken;
    }
    return worst;
  };
  if (over_rows(rows, layout.columns, kTileRows, run) == Status::kBadWord) fail_word(layout);
}

// `bias`: as float_bias_of makes it, which has to stay. x is set where it is prepared.
inline FusedTask fused_task(const LinearArguments& given, const OptionalTensor& bias, void* out) {
  return {given.layout,
          pointers(given.planes),
          golden_table(given.layout),
          nullptr,
          data<float>(bias),
          dtype_of("x", given.x.scalar_type()),
          out,
          given.m,
          given.out_features};
}

inline CodeTask code_task(const LinearArguments& given, const OptionalTensor& bias, void* out) {
  return {given.layout, pointers(given.planes), nullptr, nullptr, data<float>(bias), out,
          given.m,      given.out_features};
}

// x meets codes in fp32.
inline void multiply_fused(std::span<FusedTask> tasks, const void* x) {
  const Layout& layout = tasks[0].layout;
  const int64_t m = tasks[0].m, padded = groups_of(layout) * layout.group_size;
  float* prepared = static_cast<float*>(scratch<Scratch::kX>(m * padded * int64_t{sizeof(float)}));
  const Kernels& set = kernels();
  {
    const DenormalsKept denormals;
    set.prepare(layout, tasks[0].dtype, x, m, prepared);
  }
  for (FusedTask& task : tasks) task.x = prepared;
  over_weights<FusedTask>(tasks, set.fused);
}

inline Tensor fused_linear(const LinearArguments& given) {
  Tensor out = new_out(given, given.x.scalar_type());
  const OptionalTensor bias = float_bias_of(given);
  FusedTask task = fused_task(given, bias, out.mutable_data_ptr());
  multiply_fused({&task, 1}, given.x.const_data_ptr());
  return out;
}

// The kernels that are for so many rows of bf16, or of int8 that they are rounded to; or null.
inline const CodeKernels* code_kernels(const LinearArguments& given, bool int8) {
  for (const CodeKernels* way : {kernels().tiles, kernels().integers}) {
    if (way != nullptr && way->takes(given.layout, given.m, int8)) return way;
  }
  return nullptr;
}

// Codes meet rows of bf16 in a form of their own; false where that cannot hold them.
inline bool multiply_codes(const CodeKernels& way, std::span<CodeTask> tasks, const void* x,
                           bool int8) {
  const Layout& layout = tasks[0].layout;
  const int64_t m = tasks[0].m, size = way.x_bytes(layout, m, int8);
  const int64_t more = int8 ? m * int64_t{sizeof(float)} : 0;
  auto* prepared = static_cast<uint8_t*>(scratch<Scratch::kX>(size + more));
  float* factors = int8 ? reinterpret_cast<float*>(prepared + size) : nullptr;
  if (!way.prepare(layout, x, m, prepared, factors)) return false;
  for (CodeTask& task : tasks) {
    task.x = prepared;
    task.factors = factors;
  }
  over_weights<CodeTask>(tasks, way.multiply);
  return true;
}

inline Tensor code_linear(const CodeKernels& way, const LinearArguments& given, bool int8) {
  Tensor out = new_out(given, given.x.scalar_type());
  const OptionalTensor bias = float_bias_of(given);
  CodeTask task = code_task(given, bias, out.mutable_data_ptr());
  const void* x = given.x.const_data_ptr();
  return multiply_codes(way, {&task, 1}, x, int8) ? out : fused_linear(given);
}

// As torch rounds: to nearest even, NaN stays NaN, and what is too large becomes an infinity, where
// narrowed_bits saturates; and without branches, so that compilers make vectors of it.
inline void round_to_bfloat16s(const float* from, int64_t count, uint16_t* to) {
  for (int64_t i = 0; i < count; i++) {
    uint32_t bits;
    std::memcpy(&bits, from + i, sizeof bits);
    const bool none = (bits & 0x7FFFFFFF) > 0x7F800000;
    to[i] =
        static_cast<uint16_t>((none ? bits | 0x400000 : bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
  }
}

// Few rows of fp32 as bf16, with room behind them: torch's conversions would take a tenth of a
// small product.
inline uint16_t* few_as_bfloat16s(const LinearArguments& given, int64_t more) {
  const int64_t in = given.m * given.layout.columns;
  auto* x =
      static_cast<uint16_t*>(scratch<Scratch::kWeight>((in + more) * int64_t{sizeof(uint16_t)}));
  round_to_bfloat16s(static_cast<const float*>(given.x.const_data_ptr()), in, x);
  return x;
}

inline Tensor widened(const LinearArguments& given, const uint16_t* sums) {
  Tensor out = new_out(given, ScalarType::Float);
  auto* to = static_cast<uint32_t*>(out.mutable_data_ptr());
  for (int64_t i = 0; i < given.m * given.out_features; i++) to[i] = uint32_t{sums[i]} << 16;
  return out;
}

inline Tensor few_rounded_linear(const CodeKernels& way, const LinearArguments& given, bool int8) {
  uint16_t* x = few_as_bfloat16s(given, given.m * given.out_features);
  uint16_t* sums = x + given.m * given.layout.columns;
  const OptionalTensor bias = float_bias_of(given);
  CodeTask task = code_task(given, bias, sums);
  return multiply_codes(way, {&task, 1}, x, int8) ? widened(given, sums) : fused_linear(given);
}

// Whether they are few: torch shares more out to threads. `count`: of results.
inline bool are_few(const LinearArguments& given, int64_t count) {
  constexpr int64_t kFew = 1 << 16;
  return given.x.scalar_type() == ScalarType::Float && given.m * given.layout.columns <= kFew &&
         count <= kFew;
}

inline LinearArguments as_bfloat16(const LinearArguments& given) {
  LinearArguments rounded = given;
  rounded.x = torch::stable::to(given.x, ScalarType::BFloat16);
  return rounded;
}

// x of any dtype, which may be rounded to bf16, or further to int8.
inline Tensor rounded_linear(const CodeKernels& way, const LinearArguments& given, bool int8) {
  const ScalarType dtype = given.x.scalar_type();
  if (dtype == ScalarType::BFloat16) return code_linear(way, given, int8);
  if (are_few(given, given.m * given.out_features)) return few_rounded_linear(way, given, int8);
  return torch::stable::to(code_linear(way, as_bfloat16(given), int8), dtype);
}

}  // namespace phiquant::cpu
