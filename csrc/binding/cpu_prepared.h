// Products with planes that an op was given once. Handing over seventeen arguments, most of them
// None, takes longer than a small product; one tensor that stands for them all takes a fifth.
#pragma once

#include <mutex>
#include <unordered_set>

#include "cpu_linear.h"

namespace phiquant::cpu {

// Owns the planes, which may still be written to or resized: every call checks them anew.
struct Prepared {
  Layout layout;
  GivenPlanes planes;
  OptionalDtype stored;
  bool int8;
};

// Those that live, so that no other tensor is taken for one.
class PreparedOnes {
 public:
  void add(const void* one) {
    const std::lock_guard<std::mutex> lock(mutex_);
    ones_.insert(one);
  }
  void remove(const void* one) {
    const std::lock_guard<std::mutex> lock(mutex_);
    ones_.erase(one);
  }
  bool has(const void* one) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return ones_.count(one) > 0;
  }

 private:
  std::mutex mutex_;
  std::unordered_set<const void*> ones_;
};

// Never destroyed: tensors may outlive this library's statics.
inline PreparedOnes& prepared_ones() {
  static PreparedOnes& ones = *new PreparedOnes;
  return ones;
}

inline void forget(void* one) {
  prepared_ones().remove(one);
  delete static_cast<Prepared*>(one);
}

// A byte whose address is that of a Prepared, which goes when the tensor goes.
inline Tensor prepare(Tensor index, OptionalTensor deviation, OptionalTensor deviation_low,
                      Tensor scale, OptionalTensor remainder, OptionalTensor offsets,
                      OptionalTensor starts, OptionalTensor exceptions, int64_t columns,
                      int64_t index_bits, int64_t deviation_bits, int64_t group_size,
                      StringHandle grid, int64_t exponent, OptionalDtype stored_dtype, bool int8) {
  const Layout layout =
      make_layout(columns, index_bits, deviation_bits, group_size, taken(grid), exponent);
  const GivenPlanes given{index,     deviation, deviation_low, scale,
                          remainder, offsets,   starts,        exceptions};
  check_matrix(check_planes(given, layout, stored_dtype));
  auto one = std::make_unique<Prepared>(Prepared{layout, given, stored_dtype, int8});
  const torch::stable::Device device(torch::headeronly::DeviceType::CPU);
  prepared_ones().add(one.get());
  return torch::stable::from_blob(one.release(), Shape{1}, Shape{1}, device, ScalarType::Byte,
                                  forget);
}

inline Tensor prepared_linear(Tensor x, Tensor prepared, OptionalTensor bias) {
  const void* address = prepared.is_cpu() ? prepared.const_data_ptr() : nullptr;
  if (!prepared_ones().has(address)) fail("prepared: expected what phiquant::_prepare made");
  const auto* one = static_cast<const Prepared*>(address);
  return linear_of(one->layout, one->planes, one->stored, x, bias, one->int8);
}

}  // namespace phiquant::cpu
