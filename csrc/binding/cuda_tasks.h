// From tensors to kernel tasks on a GPU: its device and stream, pointers, new tensors.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../cuda/kernels.h"
#include "arguments.h"

namespace phiquant::cuda {

// While it lives, launches go to the device of a tensor, and to that device's current stream.
class Target {
 public:
  explicit Target(const Tensor& of) : index_(of.get_device_index()), guard_(index_) {}

  cudaStream_t stream() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return static_cast<cudaStream_t>(stream);
  }
  int32_t index() const { return index_; }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
};

// What a launch had to say; kernels themselves report later, as torch's do.
inline void check_launch() {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("phiquant: a CUDA kernel was not launched: ") +
                           cudaGetErrorString(error));
}

inline Dtype dtype_of(const std::string& name, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Half:
      return Dtype::kFloat16;
    default:
      fail(name + ": expected bfloat16, float16 or float32, got " + dtype_text(dtype));
  }
}

inline void check_device(const std::string& name, const Tensor& tensor, const Tensor& weight) {
  if (tensor.device() != weight.device()) {
    fail(name + ": expected a tensor on the weight's GPU, cuda:" +
         std::to_string(weight.get_device_index()));
  }
}

template <class T>
const T* data(const OptionalTensor& tensor) {
  return tensor.has_value() ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

inline Planes pointers(const CheckedPlanes& planes) {
  return {data<uint8_t>(planes.index), data<uint8_t>(planes.deviation),
          data<uint8_t>(planes.deviation_low), data<uint16_t>(planes.scale)};
}

inline Remainder remainder_of(const Layout& layout, const CheckedPlanes& planes) {
  if (!planes.stored.has_value()) return {};
  return {data<uint8_t>(planes.remainder),
          planes.remainder->numel(),
          data<uint16_t>(planes.offsets),
          data<int64_t>(planes.starts),
          planes.starts->numel() != planes.rows * blocks_of(layout),
          dtype_of("stored_dtype", *planes.stored)};
}

inline Exceptions exceptions_of(const CheckedPlanes& planes) {
  if (!planes.exceptions.has_value()) return {};
  return {data<int64_t>(planes.exceptions), planes.exceptions->sizes()[0]};
}

// Of the stream's own memory, as torch::empty.
inline Tensor new_tensor(const Shape& shape, ScalarType dtype, const Target& target) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  Shape strides(shape.size());
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<int64_t>(shape[i], 1);
  }
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(shape.size()), shape.data(), strides.data(), to<int32_t>(from(dtype)),
      aoti_torch_device_type_cuda(), target.index(), &made));
  return Tensor(made);
}

// `rows`: int64 row numbers, or null for all rows. Doubles are the fp32 decode, wider.
inline Tensor decode_to(const Layout& layout, const CheckedPlanes& planes, const int64_t* rows,
                        const Shape& leading, ScalarType dtype, const Target& target) {
  const ScalarType decoded = dtype == ScalarType::Double ? ScalarType::Float : dtype;
  const Dtype kind = dtype_of("dtype", decoded);
  Tensor out = new_tensor(with_last(leading, layout.columns), decoded, target);
  decode({layout, pointers(planes), remainder_of(layout, planes), exceptions_of(planes), rows,
          product(leading), planes.rows, kind, out.mutable_data_ptr()},
         target.stream());
  check_launch();
  return decoded == dtype ? out : torch::stable::to(out, dtype);
}

}  // namespace phiquant::cuda
