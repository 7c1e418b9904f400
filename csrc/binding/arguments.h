// Checks of the arguments that every op shares, with the reference's messages
// (phiquant/codec/layout.py). std::invalid_argument becomes Python's ValueError.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "phiquant/layout.h"

namespace phiquant {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Shape = std::vector<int64_t>;

[[noreturn]] inline void fail(const std::string& message) { throw std::invalid_argument(message); }

// As Python prints it: "(2, 3)", "(2,)".
inline std::string tuple_text(const Shape& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); i++) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

inline std::string dtype_text(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "torch.float32";
    case ScalarType::Double:
      return "torch.float64";
    case ScalarType::Half:
      return "torch.float16";
    case ScalarType::BFloat16:
      return "torch.bfloat16";
    case ScalarType::Byte:
      return "torch.uint8";
    case ScalarType::Char:
      return "torch.int8";
    case ScalarType::Short:
      return "torch.int16";
    case ScalarType::Int:
      return "torch.int32";
    case ScalarType::Long:
      return "torch.int64";
    case ScalarType::Bool:
      return "torch.bool";
    default:
      return torch::headeronly::toString(dtype);
  }
}

inline Shape shape_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return Shape(sizes.begin(), sizes.end());
}

inline bool has_shape(const Tensor& tensor, const Shape& shape) {
  const auto sizes = tensor.sizes();
  return std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end());
}

// torch's conversion to std::string never frees what it makes, so ops that are called for every
// token take the handle, which is theirs to free.
inline std::string taken(StringHandle text) {
  const char* characters = nullptr;
  size_t length = 0;
  TORCH_ERROR_CODE_CHECK(torch_string_c_str(text, &characters));
  TORCH_ERROR_CODE_CHECK(torch_string_length(text, &length));
  std::string copy(characters, length);
  TORCH_ERROR_CODE_CHECK(torch_delete_string(text));
  return copy;
}

// torch's operations are looked up by name, which takes as long as 100,000 weights: they are asked
// for only where there is something to do.
inline Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline Tensor reshaped(const Tensor& tensor, const Shape& shape) {
  return has_shape(tensor, shape) ? tensor : torch::stable::reshape(tensor, shape);
}

inline Shape with_last(Shape leading, int64_t last) {
  leading.push_back(last);
  return leading;
}

// An empty tensor may have dimensions whose product no int64 holds.
inline int64_t product(const Shape& shape) {
  int64_t result = 1;
  for (const int64_t size : shape) {
    if (__builtin_mul_overflow(result, size, &result)) {
      fail("expected a shape of fewer elements, got " + tuple_text(shape));
    }
  }
  return result;
}

// All but the last dimension; fails on a tensor without dimensions.
inline Shape leading_of(const std::string& name, const Tensor& tensor) {
  Shape shape = shape_of(tensor);
  if (shape.empty()) fail(name + ": expected at least one dimension, got shape ()");
  shape.pop_back();
  return shape;
}

inline void check_choice(const char* name, int64_t value, std::initializer_list<int64_t> choices) {
  if (std::find(choices.begin(), choices.end(), value) != choices.end()) return;
  fail(name + (" must be one of " + tuple_text(choices)) + ", got " + std::to_string(value));
}

inline Layout make_layout(int64_t columns, int64_t index_bits, int64_t deviation_bits,
                          int64_t group_size, const std::string& grid, int64_t exponent) {
  check_choice("index_bits", index_bits, {2, 3, 4, 5, 6});
  check_choice("deviation_bits", deviation_bits, {0, 2, 4, 8});
  check_choice("group_size", group_size, {32, 64, kLargestGroup});
  if (grid != "phi" && grid != "golden") {
    fail("grid must be one of ('phi', 'golden'), got '" + grid + "'");
  }
  // So large that bytes of a row would overflow is not a shape that a tensor has.
  if (columns < 1 || columns > (int64_t{1} << 48)) {
    fail("columns must be a positive integer, got " + std::to_string(columns));
  }
  if (exponent < -kLargestExponent || exponent > kLargestExponent) {
    fail("exponent must be from -112 to 112, got " + std::to_string(exponent));
  }
  return {columns,
          static_cast<int32_t>(index_bits),
          static_cast<int32_t>(deviation_bits),
          static_cast<int32_t>(group_size),
          grid == "phi" ? GridName::kPhi : GridName::kGolden,
          static_cast<int32_t>(exponent)};
}

[[noreturn]] inline void fail_word(const Layout& layout) {
  fail("scale: a word is not a normal fp16 number with a bend below " +
       std::to_string(bend_count(layout)) + " (grid " +
       (layout.grid == GridName::kPhi ? "'phi')" : "'golden')"));
}

using OptionalTensor = std::optional<Tensor>;
using OptionalDtype = std::optional<ScalarType>;

// The planes as an op is given them.
struct GivenPlanes {
  Tensor index;
  OptionalTensor deviation, deviation_low;
  Tensor scale;
  OptionalTensor remainder, offsets, starts, exceptions;
};

// Planes that fit the layout, contiguous, on the device of `scale`; absent ones are nullopt.
struct CheckedPlanes {
  OptionalTensor index, deviation, deviation_low, scale;
  OptionalTensor remainder, offsets, starts, exceptions;
  OptionalDtype stored;  // set if there is a remainder
  Shape leading;         // every dimension but the last
  int64_t rows;          // their product
};

[[noreturn]] inline void fail_plane(const std::string& name, const OptionalTensor& plane,
                                    ScalarType dtype, const Shape& shape) {
  const std::string wanted = dtype_text(dtype) + " of shape " + tuple_text(shape);
  if (!plane.has_value()) fail(name + ": missing, expected " + wanted);
  fail(name + ": expected " + wanted + ", got " + dtype_text(plane->scalar_type()) + " of shape " +
       tuple_text(shape_of(*plane)));
}

inline OptionalTensor check_plane(const char* name, const OptionalTensor& plane, bool present,
                                  ScalarType dtype, const Shape& shape) {
  if (!present) {
    if (!plane.has_value()) return std::nullopt;
    fail(name + (": the layout has no such plane, got " + tuple_text(shape_of(*plane))));
  }
  if (!plane.has_value() || plane->scalar_type() != dtype || !has_shape(*plane, shape)) {
    fail_plane(name, plane, dtype, shape);
  }
  return dense(*plane);
}

inline int64_t length_of(const OptionalTensor& plane) {
  return plane.has_value() && plane->dim() > 0 ? plane->sizes()[0] : 0;
}

inline void check_lossy(const GivenPlanes& given, const Layout& layout, CheckedPlanes* planes) {
  const auto check = [&](const char* name, const OptionalTensor& plane, int bits) {
    return check_plane(name, plane, bits > 0, ScalarType::Byte,
                       with_last(planes->leading, row_bytes(layout, bits)));
  };
  planes->scale = check_plane("weight.scale", given.scale, true, ScalarType::Short,
                              with_last(planes->leading, groups_of(layout)));
  planes->index = check("weight.index", given.index, layout.index_bits);
  planes->deviation = check("weight.deviation", given.deviation, high_bits(layout));
  planes->deviation_low = check("weight.deviation_low", given.deviation_low, low_bits(layout));
}

inline void check_exact(const GivenPlanes& given, const Layout& layout, CheckedPlanes* planes) {
  const bool exact = planes->stored.has_value();
  if (exact && layout.deviation_bits == 0) {
    fail("deviation_bits must be 2, 4 or 8 for an exact weight, got 0");
  }
  const int64_t blocks = planes->rows * blocks_of(layout), starts = length_of(given.starts);
  const int64_t spaced = (blocks + kBlocksPerStart - 1) / kBlocksPerStart;
  planes->remainder = check_plane("weight.remainder", given.remainder, exact, ScalarType::Byte,
                                  {std::max<int64_t>(length_of(given.remainder), kPadding)});
  planes->offsets = check_plane("weight.offsets", given.offsets, exact, ScalarType::Short,
                                with_last(planes->leading, blocks_of(layout)));
  planes->starts = check_plane("weight.starts", given.starts, exact, ScalarType::Long,
                               {starts == blocks ? blocks : spaced});
  planes->exceptions =
      check_plane("weight.exceptions", given.exceptions, given.exceptions.has_value(),
                  ScalarType::Long, {length_of(given.exceptions), 2});
}

inline CheckedPlanes check_planes(const GivenPlanes& given, const Layout& layout,
                                  const OptionalDtype& stored) {
  CheckedPlanes planes;
  planes.leading = shape_of(given.scale);
  if (!planes.leading.empty()) planes.leading.pop_back();
  planes.rows = product(planes.leading);
  planes.stored = stored;
  check_lossy(given, layout, &planes);
  check_exact(given, layout, &planes);
  for (const auto* plane :
       {&planes.index, &planes.deviation, &planes.deviation_low, &planes.remainder, &planes.offsets,
        &planes.starts, &planes.exceptions}) {
    if (plane->has_value() && (*plane)->device() != planes.scale->device()) {
      fail("weight: its planes are on different devices");
    }
  }
  return planes;
}

inline void check_matrix(const CheckedPlanes& planes) {
  if (planes.leading.size() == 1) return;
  fail("weight: expected planes of two dimensions, got leading dimensions " +
       tuple_text(planes.leading));
}

}  // namespace phiquant
