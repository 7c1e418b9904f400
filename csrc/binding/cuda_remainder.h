// torch.ops.phiquant.encode_remainder on a GPU. It waits for the device once, between its two
// passes: how many bytes the weights need is what the first one finds.
#pragma once

#include <tuple>

#include "../cuda/remainder.h"
#include "cuda_tasks.h"
#include "encode_arguments.h"

namespace phiquant::cuda {

// Waits for what the stream has been given.
inline Measured wait_for(const Measured* measured, const Target& target) {
  Measured found;
  cudaMemcpyAsync(&found, measured, sizeof found, cudaMemcpyDeviceToHost, target.stream());
  const cudaError_t error = cudaStreamSynchronize(target.stream());
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("phiquant: encode_remainder: ") +
                             cudaGetErrorString(error));
  }
  return found;
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor> encode_remainder(
    Tensor weight, Tensor index, OptionalTensor deviation, OptionalTensor deviation_low,
    Tensor scale, int64_t index_bits, int64_t deviation_bits, int64_t group_size, std::string grid,
    int64_t exponent, OptionalDtype stored_dtype) {
  const Shape leading = leading_of("weight", weight);
  const Layout layout =
      make_layout(weight.sizes().back(), index_bits, deviation_bits, group_size, grid, exponent);
  const CheckedPlanes planes = check_lossy_of(
      weight, layout, stored_dtype, {index, deviation, deviation_low, scale, {}, {}, {}, {}});
  if (weight.device() != planes.scale->device()) {
    fail("weight: expected a tensor on the device of its planes");
  }
  const Target target(weight);
  const int64_t blocks = planes.rows * blocks_of(layout), stretches = stretches_of(blocks);
  const Tensor source = dense(weight);
  const auto integers = [&](int64_t count) {
    return new_tensor({count}, ScalarType::Long, target);
  };
  Tensor offsets = new_tensor(with_last(leading, blocks_of(layout)), ScalarType::Short, target);
  Tensor starts = integers(stretches), first_exception = integers(stretches);
  Tensor astray = new_tensor({blocks}, ScalarType::Short, target);
  Tensor kept = integers(sizeof(Measured) / sizeof(int64_t));
  Measured* const measured = static_cast<Measured*>(kept.mutable_data_ptr());
  RemainderTask task{layout,
                     pointers(planes),
                     dtype_of("stored_dtype", *stored_dtype),
                     source.const_data_ptr(),
                     planes.rows,
                     static_cast<uint16_t*>(offsets.mutable_data_ptr()),
                     static_cast<int64_t*>(starts.mutable_data_ptr()),
                     static_cast<uint16_t*>(astray.mutable_data_ptr()),
                     static_cast<int64_t*>(first_exception.mutable_data_ptr()),
                     measured,
                     nullptr,
                     nullptr};
  Measured found{};
  if (blocks > 0) {
    cudaMemsetAsync(measured, 0, sizeof(Measured), target.stream());
    measure_remainders(task, target.stream());
    check_launch();
    found = wait_for(measured, target);
  }
  if (found.bad_word != 0) fail_word(layout);
  Tensor payload = new_tensor({found.bytes + kPadding}, ScalarType::Byte, target);
  Tensor exceptions = new_tensor({found.astray, 2}, ScalarType::Long, target);
  task.payload = static_cast<uint8_t*>(payload.mutable_data_ptr());
  task.exceptions = static_cast<int64_t*>(exceptions.mutable_data_ptr());
  cudaMemsetAsync(task.payload + found.bytes, 0, kPadding, target.stream());
  if (blocks > 0) write_remainders(task, target.stream());
  check_launch();
  return {payload, offsets, starts, exceptions};
}

}  // namespace phiquant::cuda
