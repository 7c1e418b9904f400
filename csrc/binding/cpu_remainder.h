// torch.ops.phiquant.encode_remainder on the CPU: what the lossy planes leave of a weight.
#pragma once

#include "cpu_encode.h"

namespace phiquant::cpu {

inline void run_remainder(const RemainderTask& task, int64_t rows,
                          Status (*kernel)(const RemainderTask&, int64_t, int64_t)) {
  const Status status = over_rows(rows, task.layout.columns, 1, [&](int64_t begin, int64_t end) {
    return kernel(task, begin, end);
  });
  if (status == Status::kBadWord) fail_word(task.layout);
}

// Sums of what came before, in place; returns the whole sum.
inline int64_t sum_before(std::vector<int64_t>* values) {
  int64_t sum = 0;
  for (int64_t& value : *values) {
    const int64_t mine = value;
    value = sum;
    sum += mine;
  }
  return sum;
}

// Two-level offsets of blocks that begin at `begins`.
inline void write_offsets(const std::vector<int64_t>& begins, Tensor* offsets, Tensor* starts) {
  uint16_t* near = static_cast<uint16_t*>(offsets->mutable_data_ptr());
  int64_t* far = static_cast<int64_t*>(starts->mutable_data_ptr());
  for (size_t block = 0; block < begins.size(); block++) {
    const int64_t start = begins[block / kBlocksPerStart * kBlocksPerStart];
    far[block / kBlocksPerStart] = start;
    near[block] = static_cast<uint16_t>(begins[block] - start);
  }
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
  check_cpu("weight", weight);
  const Tensor source = torch::stable::contiguous(weight);
  const Dtype stored = dtype_of("weight", *stored_dtype);
  const int64_t rows = planes.rows, blocks = rows * blocks_of(layout);
  std::vector<int64_t> begins(static_cast<size_t>(blocks)), first(static_cast<size_t>(rows));
  RemainderTask task{layout,
                     pointers(planes),
                     stored,
                     layout.grid == GridName::kPhi ? nullptr : golden_edges(layout).data(),
                     source.const_data_ptr(),
                     begins.data(),
                     first.data(),
                     begins.data(),
                     nullptr,
                     first.data(),
                     nullptr};
  run_remainder(task, rows, kernels().measure);
  const int64_t bytes = sum_before(&begins), astray = sum_before(&first);
  Tensor payload = new_tensor({bytes + kPadding}, ScalarType::Byte);
  Tensor offsets = new_tensor(with_last(leading, blocks_of(layout)), ScalarType::Short);
  Tensor starts = new_tensor({(blocks + kBlocksPerStart - 1) / kBlocksPerStart}, ScalarType::Long);
  Tensor exceptions = new_tensor({astray, 2}, ScalarType::Long);
  task.payload = static_cast<uint8_t*>(payload.mutable_data_ptr());
  task.exceptions = static_cast<int64_t*>(exceptions.mutable_data_ptr());
  std::memset(task.payload + bytes, 0, kPadding);
  run_remainder(task, rows, kernels().write);
  write_offsets(begins, &offsets, &starts);
  for (int64_t i = 0; i < astray; i++) {
    int64_t& bits = task.exceptions[2 * i + 1];
    bits = widened_bits(stored, static_cast<uint32_t>(bits));
  }
  return {payload, offsets, starts, exceptions};
}

}  // namespace phiquant::cpu
