// From tensors to kernel tasks on the CPU: pointers, threads, and the decoder that all ops use.
#pragma once

#include <atomic>
#include <limits>
#include <memory>
#include <mutex>

#include "../cpu/dispatch.h"
#include "../cpu/mode.h"
#include "../cpu/tables.h"
#include "cpu_exceptions.h"

namespace phiquant::cpu {

inline constexpr int64_t kGrain = 1 << 15;  // weights that a thread should have at least

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

template <class T>
const T* data(const OptionalTensor& tensor) {
  return tensor.has_value() ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

inline void check_cpu(const std::string& name, const Tensor& tensor) {
  if (!tensor.is_cpu()) fail(name + ": expected a tensor on the CPU, as the others are");
}

inline Planes pointers(const CheckedPlanes& planes) {
  check_cpu("weight", *planes.scale);
  return {data<uint8_t>(planes.index), data<uint8_t>(planes.deviation),
          data<uint8_t>(planes.deviation_low), data<int16_t>(planes.scale)};
}

inline Remainder remainder_of(const Layout& layout, const CheckedPlanes& planes) {
  if (!planes.stored.has_value()) return {};
  const int64_t blocks = planes.rows * blocks_of(layout);
  return {data<uint8_t>(planes.remainder),
          planes.remainder->numel(),
          data<uint16_t>(planes.offsets),
          data<int64_t>(planes.starts),
          blocks,
          0,
          planes.starts->numel() != blocks,
          dtype_of("stored_dtype", *planes.stored),
          layout.grid == GridName::kPhi ? nullptr : golden_edges(layout).data()};
}

inline const float* golden_table(const Layout& layout) {
  if (layout.grid == GridName::kPhi) return nullptr;
  return golden_levels(layout.index_bits, layout.deviation_bits).data();
}

inline int64_t rounded_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// run(begin, end) over all rows, with denormals; the worst status of all ranges. Threads take
// ranges as they get done, for cores are rarely equally fast: some are smaller, and some have a
// neighbour. `unit`: ranges are multiples of so many rows, but for the last.
template <class Run>
Status over_rows(int64_t rows, int64_t columns, int64_t unit, Run run) {
  constexpr int64_t kTurns = 8;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t least = std::max(kGrain / columns + 1, rows / (threads * kTurns));
  const int64_t range = rounded_up(least, unit), tasks = (rows + range - 1) / range;
  if (tasks == 1) {  // asking torch for threads takes a percent of a small product
    const DenormalsKept denormals;
    return run(0, rows);
  }
  std::atomic<Status> status{Status::kOk};
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, std::min(threads, tasks), 1, [&](int64_t, int64_t) {
    const DenormalsKept denormals;
    for (int64_t begin = next.fetch_add(range); begin < rows; begin = next.fetch_add(range)) {
      const Status mine = run(begin, std::min(begin + range, rows));
      if (mine != Status::kOk) status = mine;
    }
  });
  return status;
}

[[noreturn]] inline void fail_block(Status status, int64_t block) {
  const char* what = status == Status::kOutside ? "is not inside of the remainder plane"
                     : status == Status::kApart ? "does not end where the next one begins"
                                                : "holds a remainder that is not in its sub-cell";
  fail("remainder: block " + std::to_string(block) + " " + what +
       ": the planes are corrupt, or of two different encodings");
}

// The first bad block of all that threads met, or a bad scale word.
class Failure {
 public:
  void note(Status status, int64_t block) {
    if (status == Status::kOk) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (block < block_) status_ = status;
    block_ = std::min(block_, block);
  }
  void raise(const Layout& layout) const {
    if (status_ == Status::kBadWord) fail_word(layout);
    if (status_ != Status::kOk) fail_block(status_, block_);
  }

 private:
  std::mutex mutex_;
  Status status_ = Status::kOk;
  int64_t block_ = std::numeric_limits<int64_t>::max();
};

// Rows [begin, end) to task.out.
inline Status decode_range(const DecodeTask& task, int64_t begin, int64_t end, Failure* failure) {
  int64_t block = 0;
  DecodeTask mine = task;
  mine.bad_block = &block;
  const Status status = kernels().decode(mine, begin, end);
  failure->note(status, block);
  return status;
}

// `rows` rows to task.out. Ranges stop at their first bad block; the first of all is named.
inline void decode_rows(const DecodeTask& task, int64_t rows) {
  Failure failure;
  over_rows(rows, task.layout.columns, 1,
            [&](int64_t begin, int64_t end) { return decode_range(task, begin, end, &failure); });
  failure.raise(task.layout);
}

// Weights of another dtype than the kernels know are decoded to fp32, which holds all of them.
inline ScalarType decoded_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Float : dtype;
}

// As torch::stable::empty, which looks the operation up by its name.
inline Tensor new_tensor(const Shape& shape, ScalarType dtype) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  Shape strides(shape.size());
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<int64_t>(shape[i], 1);
  }
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(),
                                                  strides.data(), to<int32_t>(from(dtype)),
                                                  aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

enum class Scratch { kX, kWeight };

// Where this thread spreads out x, or decodes weights. It is kept: fresh pages would cost as much
// as decoding.
template <Scratch purpose>
inline void* scratch(int64_t bytes) {
  static thread_local std::unique_ptr<uint8_t[]> memory;
  static thread_local int64_t size = 0;
  constexpr int64_t kAlignment = 64;
  if (size < bytes + kAlignment) {
    size = bytes + kAlignment;
    memory.reset(new uint8_t[static_cast<size_t>(size)]);
  }
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory.get());
  return reinterpret_cast<void*>((address + kAlignment - 1) & ~uintptr_t{kAlignment - 1});
}

// A bias as the kernels take it: fp32, contiguous.
inline Tensor float_bias(const Tensor& bias) {
  const ScalarType dtype = bias.scalar_type();
  const Tensor given = dense(bias);
  if (dtype == ScalarType::Float) return given;
  const Dtype kind = dtype_of("bias", dtype);
  Tensor wide = new_tensor(shape_of(given), ScalarType::Float);
  const auto* from = static_cast<const uint16_t*>(given.const_data_ptr());
  auto* to = static_cast<uint32_t*>(wide.mutable_data_ptr());
  for (int64_t i = 0; i < given.numel(); i++) to[i] = widened_bits(kind, from[i]);
  return wide;
}

// `rows`: int64 row numbers, or null for all rows from the first on.
inline Tensor decode_to(const Layout& layout, const CheckedPlanes& planes, const int64_t* rows,
                        const Shape& leading, ScalarType dtype) {
  const ScalarType stored = decoded_dtype(dtype);
  const Dtype kind = dtype_of("dtype", stored);
  Tensor out = new_tensor(with_last(leading, layout.columns), stored);
  const DecodeTask task{
      layout, pointers(planes),       rows,           golden_table(layout),
      kind,   out.mutable_data_ptr(), layout.columns, remainder_of(layout, planes),
      nullptr};
  decode_rows(task, product(leading));
  put_exceptions(exceptions_of(planes), task, 0, product(leading));
  return stored == dtype ? out : torch::stable::to(out, dtype);
}

}  // namespace phiquant::cpu
