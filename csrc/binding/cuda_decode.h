// torch.ops.phiquant.decode and embedding on a GPU.
#pragma once

#include "cuda_tasks.h"

namespace phiquant::cuda {

inline Tensor decode_planes(Tensor index, OptionalTensor deviation, OptionalTensor deviation_low,
                            Tensor scale, OptionalTensor remainder, OptionalTensor offsets,
                            OptionalTensor starts, OptionalTensor exceptions, int64_t columns,
                            int64_t index_bits, int64_t deviation_bits, int64_t group_size,
                            StringHandle grid, int64_t exponent, OptionalDtype stored_dtype,
                            ScalarType dtype) {
  const Layout layout =
      make_layout(columns, index_bits, deviation_bits, group_size, taken(grid), exponent);
  const GivenPlanes given{index,     deviation, deviation_low, scale,
                          remainder, offsets,   starts,        exceptions};
  const Target target(scale);
  const CheckedPlanes planes = check_planes(given, layout, stored_dtype);
  return decode_to(layout, planes, nullptr, planes.leading, dtype, target);
}

// An index that is out of range stops the device, as in torch's own embedding.
inline Tensor embedding(Tensor indices, Tensor index, OptionalTensor deviation,
                        OptionalTensor deviation_low, Tensor scale, OptionalTensor remainder,
                        OptionalTensor offsets, OptionalTensor starts, OptionalTensor exceptions,
                        int64_t columns, int64_t index_bits, int64_t deviation_bits,
                        int64_t group_size, StringHandle grid, int64_t exponent,
                        OptionalDtype stored_dtype, ScalarType dtype) {
  const Layout layout =
      make_layout(columns, index_bits, deviation_bits, group_size, taken(grid), exponent);
  const GivenPlanes given{index,     deviation, deviation_low, scale,
                          remainder, offsets,   starts,        exceptions};
  const Target target(scale);
  const CheckedPlanes planes = check_planes(given, layout, stored_dtype);
  check_matrix(planes);
  const ScalarType kind = indices.scalar_type();
  if (kind != ScalarType::Int && kind != ScalarType::Long) {
    fail("indices: expected torch.int32 or torch.int64, got " + dtype_text(kind));
  }
  check_device("indices", indices, scale);
  const Tensor rows =
      dense(kind == ScalarType::Long ? indices : torch::stable::to(indices, ScalarType::Long));
  return decode_to(layout, planes, static_cast<const int64_t*>(rows.const_data_ptr()),
                   shape_of(indices), dtype, target);
}

}  // namespace phiquant::cuda
