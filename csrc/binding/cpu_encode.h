// torch.ops.phiquant.encode on the CPU.
#pragma once

#include <cmath>

#include "cpu_tasks.h"
#include "encode_arguments.h"

namespace phiquant::cpu {

// Scales a group's importance by a power of two to near 1; fails unless it is finite and >= 0.
inline void normalise_importance(float* values, int32_t count) {
  float largest = 0;
  for (int32_t i = 0; i < count; i++) {
    if (!(values[i] >= 0) || std::isinf(values[i])) {
      fail("importance: expected finite values >= 0, got " + std::to_string(values[i]));
    }
    largest = std::max(largest, values[i]);
  }
  if (largest == 0) return;
  const int exponent = std::ilogb(largest);
  for (int32_t i = 0; i < count; i++) values[i] = std::ldexp(values[i], -exponent);
}

// fp32 of [columns] that is finite and >= 0, scaled by a power of two in every group so that its
// products with squared errors stay in range; 0 where a short group is padded.
inline std::vector<float> group_importance(const Layout& layout, const OptionalTensor& importance) {
  if (importance.has_value() && shape_of(*importance) != Shape{layout.columns}) {
    fail("importance: expected shape (" + std::to_string(layout.columns) + ",), got " +
         tuple_text(shape_of(*importance)));
  }
  const int64_t padded = groups_of(layout) * layout.group_size;
  if (!importance.has_value() && padded == layout.columns) return {};
  std::vector<float> values(static_cast<size_t>(padded), 0.0f);
  if (!importance.has_value()) {
    std::fill_n(values.begin(), layout.columns, 1.0f);
    return values;
  }
  check_cpu("importance", *importance);
  const Tensor given = torch::stable::contiguous(torch::stable::to(*importance, ScalarType::Float));
  std::copy_n(static_cast<const float*>(given.const_data_ptr()), layout.columns, values.begin());
  for (size_t start = 0; start < values.size(); start += static_cast<size_t>(layout.group_size)) {
    normalise_importance(&values[start], layout.group_size);
  }
  return values;
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor> encode(Tensor weight, OptionalTensor importance,
                                                         int64_t index_bits, int64_t deviation_bits,
                                                         int64_t group_size, std::string grid,
                                                         int64_t exponent,
                                                         OptionalDtype stored_dtype,
                                                         std::string fit) {
  const Dtype dtype = dtype_of("weight", weight.scalar_type());
  const Shape leading = leading_of("weight", weight);
  const Layout layout =
      make_layout(weight.sizes().back(), index_bits, deviation_bits, group_size, grid, exponent);
  check_stored(weight, layout, stored_dtype);
  const bool exact = stored_dtype.has_value();
  const Fit kind = fit_of(fit, exact);
  const std::vector<float> weighted = group_importance(layout, importance);
  const Tensor source = torch::stable::contiguous(weight);
  const SearchTables tables(layout, exact && kind == Fit::kJoint);
  const auto plane = [&](int bits) {
    return new_tensor(with_last(leading, row_bytes(layout, bits)), ScalarType::Byte);
  };
  Tensor index = plane(layout.index_bits), deviation = plane(high_bits(layout));
  Tensor low = plane(low_bits(layout));
  Tensor scale = new_tensor(with_last(leading, groups_of(layout)), ScalarType::Short);
  const EncodeTask task{layout,
                        kind,
                        dtype,
                        source.const_data_ptr(),
                        weighted.empty() ? nullptr : weighted.data(),
                        tables.inverse.data(),
                        tables.scan,
                        tables.levels,
                        tables.index_levels,
                        tables.edges,
                        tables.ends.data(),
                        exact ? thirty_second_powers() : nullptr,
                        price_of(fit),
                        exact,
                        static_cast<uint8_t*>(index.mutable_data_ptr()),
                        static_cast<uint8_t*>(deviation.mutable_data_ptr()),
                        static_cast<uint8_t*>(low.mutable_data_ptr()),
                        static_cast<int16_t*>(scale.mutable_data_ptr())};
  const Kernels& set = kernels();
  const Status status =
      over_rows(product(leading), layout.columns * 16, 1,
                [&](int64_t begin, int64_t end) { return set.encode(task, begin, end); });
  if (status == Status::kNotFinite) fail_not_finite();
  return {index, deviation, low, scale};
}

}  // namespace phiquant::cpu
