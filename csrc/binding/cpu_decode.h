// torch.ops.phiquant.decode and embedding on the CPU.
#pragma once

#include "cpu_tasks.h"

namespace phiquant::cpu {

inline Tensor decode(Tensor index, OptionalTensor deviation, OptionalTensor deviation_low,
                     Tensor scale, OptionalTensor remainder, OptionalTensor offsets,
                     OptionalTensor starts, OptionalTensor exceptions, int64_t columns,
                     int64_t index_bits, int64_t deviation_bits, int64_t group_size,
                     StringHandle grid, int64_t exponent, OptionalDtype stored_dtype,
                     ScalarType dtype) {
  const Layout layout =
      make_layout(columns, index_bits, deviation_bits, group_size, taken(grid), exponent);
  const GivenPlanes given{index,     deviation, deviation_low, scale,
                          remainder, offsets,   starts,        exceptions};
  const CheckedPlanes planes = check_planes(given, layout, stored_dtype);
  return decode_to(layout, planes, nullptr, planes.leading, dtype);
}

// int64 copies of indices that are within [0, rows).
inline Tensor checked_indices(const Tensor& indices, int64_t rows) {
  const ScalarType dtype = indices.scalar_type();
  if (dtype != ScalarType::Int && dtype != ScalarType::Long) {
    fail("indices: expected torch.int32 or torch.int64, got " + dtype_text(dtype));
  }
  check_cpu("indices", indices);
  Tensor checked =
      dense(dtype == ScalarType::Long ? indices : torch::stable::to(indices, ScalarType::Long));
  const int64_t* values = static_cast<const int64_t*>(checked.const_data_ptr());
  for (int64_t i = 0; i < checked.numel(); i++) {
    if (values[i] < 0 || values[i] >= rows) {
      throw std::out_of_range("indices: " + std::to_string(values[i]) + " is out of range for " +
                              std::to_string(rows) + " rows");
    }
  }
  return checked;
}

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
  const CheckedPlanes planes = check_planes(given, layout, stored_dtype);
  check_matrix(planes);
  const Tensor rows = checked_indices(indices, planes.rows);
  return decode_to(layout, planes, static_cast<const int64_t*>(rows.const_data_ptr()),
                   shape_of(indices), dtype);
}

}  // namespace phiquant::cpu
