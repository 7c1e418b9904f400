// Products with planes that an op was given once. Handing over seventeen arguments, most of them
// None, takes longer than a small product; one tensor that stands for them all takes a fifth.
#pragma once

#include <array>

#include "cpu_linear.h"

namespace phiquant::cpu {

// Where a plane was, and of what shape. What is true of a plane is true until one of these changes.
struct Place {
  const void* data;
  std::array<int64_t, 2> sizes, strides;
  int64_t dim;
  ScalarType dtype;

  bool operator==(const Place&) const = default;
};

inline Place place_of(const OptionalTensor& plane) {
  Place place{nullptr, {}, {}, -1, ScalarType::Undefined};
  if (!plane.has_value()) return place;
  const auto sizes = plane->sizes(), strides = plane->strides();
  place.dim = static_cast<int64_t>(sizes.size());
  if (place.dim > 2) return place;  // no plane of a matrix
  std::copy(sizes.begin(), sizes.end(), place.sizes.begin());
  std::copy(strides.begin(), strides.end(), place.strides.begin());
  place.data = plane->const_data_ptr();
  place.dtype = plane->scalar_type();
  return place;
}

using Places = std::array<Place, 8>;

inline Places places_of(const GivenPlanes& given) {
  return {place_of(given.index),  place_of(given.deviation), place_of(given.deviation_low),
          place_of(given.scale),  place_of(given.remainder), place_of(given.offsets),
          place_of(given.starts), place_of(given.exceptions)};
}

// Owns the planes, which may still be written to, resized or replaced: every call looks where they
// are, and checks them anew if they are elsewhere.
struct Prepared {
  const Prepared* self;  // its address: of nothing else, not of a copy of these bytes either
  Layout layout;
  GivenPlanes given;
  OptionalDtype stored;
  bool int8;
  CheckedPlanes checked;
  Places places;
  bool dense;  // `checked` has the planes themselves, no contiguous copies
};

inline bool is_contiguous(const OptionalTensor& plane) {
  return !plane.has_value() || plane->is_contiguous();
}

inline bool all_contiguous(const GivenPlanes& given) {
  return is_contiguous(given.index) && is_contiguous(given.deviation) &&
         is_contiguous(given.deviation_low) && is_contiguous(given.scale) &&
         is_contiguous(given.remainder) && is_contiguous(given.offsets) &&
         is_contiguous(given.starts) && is_contiguous(given.exceptions);
}

inline void forget(void* one) {
  auto* prepared = static_cast<Prepared*>(one);
  prepared->self = nullptr;  // who gets this memory next is no Prepared
  delete prepared;
}

// A tensor whose bytes are a Prepared, which goes when the tensor goes.
inline Tensor prepare(Tensor index, OptionalTensor deviation, OptionalTensor deviation_low,
                      Tensor scale, OptionalTensor remainder, OptionalTensor offsets,
                      OptionalTensor starts, OptionalTensor exceptions, int64_t columns,
                      int64_t index_bits, int64_t deviation_bits, int64_t group_size,
                      StringHandle grid, int64_t exponent, OptionalDtype stored_dtype, bool int8) {
  const Layout layout =
      make_layout(columns, index_bits, deviation_bits, group_size, taken(grid), exponent);
  const GivenPlanes given{index,     deviation, deviation_low, scale,
                          remainder, offsets,   starts,        exceptions};
  CheckedPlanes checked = check_planes(given, layout, stored_dtype);
  check_matrix(checked);
  auto one = std::make_unique<Prepared>(Prepared{nullptr, layout, given, stored_dtype, int8,
                                                 std::move(checked), places_of(given),
                                                 all_contiguous(given)});
  one->self = one.get();
  const torch::stable::Device device(torch::headeronly::DeviceType::CPU);
  return torch::stable::from_blob(one.release(), Shape{sizeof(Prepared)}, Shape{1}, device,
                                  ScalarType::Byte, forget);
}

inline const Prepared& prepared_of(const Tensor& tensor) {
  const void* address = nullptr;
  if (tensor.is_cpu() && tensor.numel() == sizeof(Prepared) && tensor.is_contiguous() &&
      tensor.scalar_type() == ScalarType::Byte) {
    address = tensor.const_data_ptr();
  }
  const void* self = nullptr;
  if (address != nullptr) std::memcpy(&self, address, sizeof self);
  if (self == nullptr || self != address) {
    fail("prepared: expected what phiquant::_prepare made");
  }
  return *static_cast<const Prepared*>(address);
}

inline Tensor prepared_linear(const Tensor& x, const Tensor& prepared, const OptionalTensor& bias) {
  const Prepared& one = prepared_of(prepared);
  if (one.dense && places_of(one.given) == one.places) {
    return linear_of(one.layout, one.checked, x, bias, one.int8);
  }
  const CheckedPlanes planes = check_planes(one.given, one.layout, one.stored);
  return linear_of(one.layout, planes, x, bias, one.int8);
}

}  // namespace phiquant::cpu
