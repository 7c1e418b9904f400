// torch.ops.phiquant._grouped_few on a GPU: lossy planes of three dimensions, whatever `ends` hold.
#pragma once

#include "../cuda/grouped.h"
#include "cuda_tasks.h"

namespace phiquant::cuda {

inline void check_grouped(const Tensor& x, const CheckedPlanes& planes, const Tensor& ends,
                          const Layout& layout) {
  if (planes.leading.size() != 2 || planes.leading[0] > 65535 || planes.stored.has_value() ||
      planes.exceptions.has_value()) {
    fail("weight: expected lossy planes of at most 65535 experts");
  }
  if (shape_of(x).size() != 2 || shape_of(x)[1] != layout.columns) {
    fail("x: expected shape (tokens, " + std::to_string(layout.columns) + "), got " +
         tuple_text(shape_of(x)));
  }
  const ScalarType kind = ends.scalar_type();
  if (kind != ScalarType::Int && kind != ScalarType::Long) {
    fail("ends: expected torch.int32 or torch.int64, got " + dtype_text(kind));
  }
  if (!has_shape(ends, {planes.leading[0]})) {
    fail("ends: expected shape " + tuple_text({planes.leading[0]}) +
         ", one number an expert, got " + tuple_text(shape_of(ends)));
  }
  check_device("x", x, *planes.scale);
  check_device("ends", ends, *planes.scale);
}

inline Tensor grouped_few(Tensor x, Tensor index, OptionalTensor deviation,
                          OptionalTensor deviation_low, Tensor scale, OptionalTensor remainder,
                          OptionalTensor offsets, OptionalTensor starts, OptionalTensor exceptions,
                          Tensor ends, int64_t columns, int64_t index_bits, int64_t deviation_bits,
                          int64_t group_size, StringHandle grid, int64_t exponent,
                          OptionalDtype stored_dtype) {
  const Layout layout =
      make_layout(columns, index_bits, deviation_bits, group_size, taken(grid), exponent);
  const GivenPlanes given{index,     deviation, deviation_low, scale,
                          remainder, offsets,   starts,        exceptions};
  const Target target(scale);
  const CheckedPlanes planes = check_planes(given, layout, stored_dtype);
  check_grouped(x, planes, ends, layout);
  const bool wide = ends.scalar_type() == ScalarType::Long;
  const Tensor rows = dense(x), stops = dense(ends);
  const int64_t tokens = shape_of(x)[0], out_features = planes.leading[1];
  Tensor out = new_tensor({tokens, out_features}, x.scalar_type(), target);
  multiply_grouped({layout,
                    pointers(planes),
                    rows.const_data_ptr(),
                    {stops.const_data_ptr(), wide},
                    out.mutable_data_ptr(),
                    dtype_of("x", x.scalar_type()),
                    tokens,
                    planes.leading[0],
                    out_features},
                   target.stream());
  check_launch();
  return out;
}

}  // namespace phiquant::cuda
