// torch.ops.phiquant.encode on a GPU. Alone among the ops it waits for the device, once, since what
// it was given may not be finite.
#pragma once

#include <cmath>
#include <tuple>

#include "../cuda/encode.h"
#include "cuda_tasks.h"
#include "encode_arguments.h"

namespace phiquant::cuda {

// fp32 [columns] on the GPU; nullopt if all columns count alike.
inline OptionalTensor group_importance(const Layout& layout, const OptionalTensor& importance,
                                       const Tensor& weight, Fault* fault, const Target& target) {
  if (!importance.has_value()) return std::nullopt;
  if (shape_of(*importance) != Shape{layout.columns}) {
    fail("importance: expected shape (" + std::to_string(layout.columns) + ",), got " +
         tuple_text(shape_of(*importance)));
  }
  check_device("importance", *importance, weight);
  const Tensor given = dense(torch::stable::to(*importance, ScalarType::Float));
  Tensor spread = new_tensor({layout.columns}, ScalarType::Float, target);
  spread_importance(layout, static_cast<const float*>(given.const_data_ptr()),
                    static_cast<float*>(spread.mutable_data_ptr()), fault, target.stream());
  check_launch();
  return spread;
}

inline Prices prices_of(const std::string& fit, bool exact) {
  Prices prices{};
  if (exact) prices.step = price_of(fit);
  for (int i = 0; i < 32; i++) prices.thirty_seconds[i] = std::exp2(i / 32.0);
  return prices;
}

// Waits for what the stream has been given.
inline void check_fault(const Fault* fault, const Target& target) {
  Fault found = Fault::kNone;
  cudaMemcpyAsync(&found, fault, sizeof found, cudaMemcpyDeviceToHost, target.stream());
  const cudaError_t error = cudaStreamSynchronize(target.stream());
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("phiquant: encode: ") + cudaGetErrorString(error));
  }
  if (found == Fault::kNotFinite) fail_not_finite();
  if (found == Fault::kImportance) fail("importance: expected finite values >= 0");
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor> encode_weight(
    Tensor weight, OptionalTensor importance, int64_t index_bits, int64_t deviation_bits,
    int64_t group_size, std::string grid, int64_t exponent, OptionalDtype stored_dtype,
    std::string fit) {
  const Dtype dtype = dtype_of("weight", weight.scalar_type());
  const Shape leading = leading_of("weight", weight);
  const Layout layout =
      make_layout(weight.sizes().back(), index_bits, deviation_bits, group_size, grid, exponent);
  check_stored(weight, layout, stored_dtype);
  const bool exact = stored_dtype.has_value();
  const Fit kind = fit_of(fit, exact);
  const Target target(weight);
  const Tensor source = dense(weight), kept = new_tensor({1}, ScalarType::Int, target);
  Fault* const fault = static_cast<Fault*>(kept.mutable_data_ptr());
  cudaMemsetAsync(fault, 0, sizeof(Fault), target.stream());
  const OptionalTensor weighted = group_importance(layout, importance, weight, fault, target);
  const auto plane = [&](int bits) {
    return new_tensor(with_last(leading, row_bytes(layout, bits)), ScalarType::Byte, target);
  };
  const auto bytes = [](Tensor& made) { return static_cast<uint8_t*>(made.mutable_data_ptr()); };
  Tensor index = plane(layout.index_bits), deviation = plane(high_bits(layout));
  Tensor low = plane(low_bits(layout));
  Tensor scale = new_tensor(with_last(leading, groups_of(layout)), ScalarType::Short, target);
  encode({layout, kind, dtype, exact, prices_of(fit, exact), source.const_data_ptr(),
          data<float>(weighted), product(leading), bytes(index), bytes(deviation), bytes(low),
          static_cast<uint16_t*>(scale.mutable_data_ptr()), fault},
         target.stream());
  check_launch();
  check_fault(fault, target);
  return {index, deviation, low, scale};
}

}  // namespace phiquant::cuda
