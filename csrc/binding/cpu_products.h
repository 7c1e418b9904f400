// x . weight^T on the CPU, in four ways: codes meet x in a form of its own, on the matrix unit or
// in integers; or x in fp32, in registers; or some rows of the weight are decoded, for the caches,
// and multiplied; or blocks of them, by torch.
#pragma once

#include <cstring>

#include "cpu_tasks.h"

namespace phiquant::cpu {

inline constexpr int64_t kBlockBytes = int64_t{8} << 20;  // of decoded weights at a time

inline constexpr int64_t kTileRows = 16;  // of the weight, which kernels take together

struct LinearArguments {
  const Layout& layout;
  const CheckedPlanes& planes;
  Tensor x;  // [m, columns], contiguous
  OptionalTensor bias;
  int64_t m;
  int64_t out_features;
};

inline Tensor aten_linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(x), from(weight), from(bias)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline OptionalTensor float_bias_of(const LinearArguments& given) {
  if (!given.bias.has_value()) return std::nullopt;
  return float_bias(*given.bias);
}

inline Tensor fused_linear(const LinearArguments& given) {
  const Layout& layout = given.layout;
  const ScalarType dtype = given.x.scalar_type();
  const int64_t padded = groups_of(layout) * layout.group_size;
  Tensor out = new_tensor({given.m, given.out_features}, dtype);
  const OptionalTensor bias = float_bias_of(given);
  float* x = static_cast<float*>(scratch<Scratch::kX>(given.m * padded * int64_t{sizeof(float)}));
  const Dtype kind = dtype_of("x", dtype);
  const Kernels& set = kernels();
  {
    const DenormalsKept denormals;
    set.prepare(layout, kind, given.x.const_data_ptr(), given.m, x);
  }
  const FusedTask task{layout,
                       pointers(given.planes),
                       golden_table(layout),
                       x,
                       data<float>(bias),
                       kind,
                       out.mutable_data_ptr(),
                       given.m,
                       given.out_features};
  const Status status =
      over_rows(given.out_features, layout.columns, kTileRows,
                [&](int64_t begin, int64_t end) { return set.fused(task, begin, end); });
  if (status == Status::kBadWord) fail_word(layout);
  return out;
}

// The planes from row `first` on.
inline Planes planes_from(const LinearArguments& given, int64_t first) {
  const Layout& layout = given.layout;
  Planes planes = pointers(given.planes);
  planes.index += first * row_bytes(layout, layout.index_bits);
  if (planes.deviation != nullptr) planes.deviation += first * row_bytes(layout, high_bits(layout));
  if (planes.deviation_low != nullptr) {
    planes.deviation_low += first * row_bytes(layout, low_bits(layout));
  }
  planes.scale += first * groups_of(layout);
  return planes;
}

// The same for remainders: they keep their places, since blocks are counted from where they begin.
inline Remainder remainder_from(const LinearArguments& given, int64_t first) {
  Remainder remainder = remainder_of(given.layout, given.planes);
  remainder.first_block = first * blocks_of(given.layout);
  return remainder;
}

// The kernels that are for so many rows of bf16, or of int8 that they are rounded to; or null.
inline const CodeKernels* code_kernels(const LinearArguments& given, bool int8) {
  for (const CodeKernels* way : {kernels().tiles, kernels().integers}) {
    if (way != nullptr && way->takes(given.layout, given.m, int8)) return way;
  }
  return nullptr;
}

// Codes meet rows of bf16 in a form of their own, from x to `out`; false where that cannot hold
// them.
inline bool multiply_codes(const CodeKernels& way, const LinearArguments& given, const void* x,
                           void* out, bool int8) {
  const Layout& layout = given.layout;
  const int64_t size = way.x_bytes(layout, given.m, int8);
  const int64_t more = int8 ? given.m * int64_t{sizeof(float)} : 0;
  auto* prepared = static_cast<uint8_t*>(scratch<Scratch::kX>(size + more));
  float* factors = int8 ? reinterpret_cast<float*>(prepared + size) : nullptr;
  if (!way.prepare(layout, x, given.m, prepared, factors)) return false;
  const OptionalTensor bias = float_bias_of(given);
  const CodeTask task{layout,  pointers(given.planes), prepared, factors, data<float>(bias), out,
                      given.m, given.out_features};
  const Status status =
      over_rows(given.out_features, layout.columns, kTileRows,
                [&](int64_t begin, int64_t end) { return way.multiply(task, begin, end); });
  if (status == Status::kBadWord) fail_word(layout);
  return true;
}

inline Tensor code_linear(const CodeKernels& way, const LinearArguments& given, bool int8) {
  Tensor out = new_tensor({given.m, given.out_features}, given.x.scalar_type());
  const void* x = given.x.const_data_ptr();
  return multiply_codes(way, given, x, out.mutable_data_ptr(), int8) ? out : fused_linear(given);
}

// As torch rounds: to nearest even, NaN stays NaN, and what is too large becomes an infinity, where
// narrowed_bits saturates; and without branches, so that compilers make vectors of it.
inline void round_to_bfloat16s(const float* from, int64_t count, uint16_t* to) {
  for (int64_t i = 0; i < count; i++) {
    uint32_t bits;
    std::memcpy(&bits, from + i, sizeof bits);
    const bool none = (bits & 0x7FFFFFFF) > 0x7F800000;
    to[i] =
        static_cast<uint16_t>((none ? bits | 0x400000 : bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
  }
}

// Few rows of fp32, by way of bf16: torch's conversions would take a tenth of a small product.
inline Tensor few_int8_linear(const CodeKernels& way, const LinearArguments& given, int64_t in) {
  const int64_t count = given.m * given.out_features;
  auto* x =
      static_cast<uint16_t*>(scratch<Scratch::kWeight>((in + count) * int64_t{sizeof(uint16_t)}));
  uint16_t* sums = x + in;
  round_to_bfloat16s(static_cast<const float*>(given.x.const_data_ptr()), in, x);
  multiply_codes(way, given, x, sums, true);  // int8 holds any x
  Tensor out = new_tensor({given.m, given.out_features}, ScalarType::Float);
  auto* to = static_cast<uint32_t*>(out.mutable_data_ptr());
  for (int64_t i = 0; i < count; i++) to[i] = uint32_t{sums[i]} << 16;
  return out;
}

// Of any dtype: x is to be rounded anyway.
inline Tensor int8_linear(const CodeKernels& way, const LinearArguments& given) {
  constexpr int64_t kFew = 1 << 16;  // numbers; torch shares more out to threads
  const ScalarType dtype = given.x.scalar_type();
  if (dtype == ScalarType::BFloat16) return code_linear(way, given, true);
  const int64_t in = given.m * given.layout.columns;
  if (dtype == ScalarType::Float && in <= kFew && given.m * given.out_features <= kFew) {
    return few_int8_linear(way, given, in);
  }
  LinearArguments rounded = given;
  rounded.x = torch::stable::to(given.x, ScalarType::BFloat16);
  return torch::stable::to(code_linear(way, rounded, true), dtype);
}

// The kernels that are for so many rows of x and decoded weights; or null.
inline const DecodedKernels* decoded_kernels(Dtype x, int64_t m) {
  for (const DecodedKernels* way : {kernels().decoded_tiles, kernels().decoded}) {
    if (way != nullptr && way->takes(x, m)) return way;
  }
  return nullptr;
}

// Some rows of the weight at a time are decoded, for the caches, and multiplied.
inline Tensor decoded_linear(const DecodedKernels& set, const LinearArguments& given) {
  const Layout& layout = given.layout;
  const int64_t columns = layout.columns, size = size_of(set.weight), most = set.rows(columns);
  const Dtype kind = dtype_of("x", given.x.scalar_type());
  // Whole vectors, and a line more, so that rows do not compete for the same places in the cache.
  const int64_t stride = (columns + 63) / 64 * 64 + 32;
  const Exceptions exceptions = exceptions_of(given.planes);
  Tensor out = new_tensor({given.m, given.out_features}, given.x.scalar_type());
  const OptionalTensor bias = float_bias_of(given);
  auto* x = static_cast<uint8_t*>(scratch<Scratch::kX>(set.x_bytes(columns, given.m)));
  {
    const DenormalsKept denormals;
    set.prepare(columns, kind, given.x.const_data_ptr(), given.m, x);
  }
  Failure failure;
  over_rows(given.out_features, columns, most, [&](int64_t begin, int64_t end) {
    auto* memory = static_cast<uint8_t*>(scratch<Scratch::kWeight>(most * stride * size));
    for (int64_t i = 0; i < most; i++) {
      std::memset(memory + (i * stride + columns) * size, 0,
                  static_cast<size_t>((stride - columns) * size));
    }
    for (int64_t first = begin; first < end; first += most) {
      const int64_t rows = std::min(most, end - first);
      const DecodeTask task{
          layout, planes_from(given, first),    nullptr, golden_table(layout), set.weight, memory,
          stride, remainder_from(given, first), nullptr};
      const Status status = decode_range(task, 0, rows, &failure);
      if (status != Status::kOk) return status;
      put_exceptions(exceptions, task, first, rows);
      set.multiply(DecodedTask{memory, stride, x, data<float>(bias), kind, out.mutable_data_ptr(),
                               given.m, columns, first, rows, given.out_features});
    }
    return Status::kOk;
  });
  failure.raise(layout);
  return out;
}

inline Tensor blocked_linear(const LinearArguments& given) {
  const ScalarType dtype = given.x.scalar_type();
  const Dtype kind = dtype_of("x", dtype);
  const int64_t columns = given.layout.columns, width = kind == Dtype::kFloat32 ? 4 : 2;
  const Exceptions exceptions = exceptions_of(given.planes);
  const int64_t most =
      std::min(std::max<int64_t>(kBlockBytes / (columns * width), 64), given.out_features);
  void* memory = scratch<Scratch::kWeight>(most * columns * width);
  Tensor out = new_tensor({given.m, given.out_features}, dtype);
  const torch::stable::Device device(torch::headeronly::DeviceType::CPU);
  OptionalTensor bias = given.bias;
  for (int64_t first = 0; first < given.out_features; first += most) {
    const int64_t rows = std::min(most, given.out_features - first);
    const DecodeTask task{given.layout, planes_from(given, first),
                          nullptr,      golden_table(given.layout),
                          kind,         memory,
                          columns,      remainder_from(given, first),
                          nullptr};
    decode_rows(task, rows);
    put_exceptions(exceptions, task, first, rows);
    const Tensor weight =
        torch::stable::from_blob(memory, Shape{rows, columns}, Shape{columns, 1}, device, dtype);
    OptionalTensor part;
    if (bias.has_value()) part = torch::stable::narrow(*bias, 0, first, rows);
    const Tensor product = aten_linear(given.x, weight, part);
    if (rows == given.out_features) return product;
    Tensor to = torch::stable::narrow(out, 1, first, rows);
    torch::stable::copy_(to, product);
  }
  return out;
}

// fp64 has no kernel of its own: fp32 holds every decoded weight.
inline Tensor double_linear(const LinearArguments& given) {
  const Tensor weight =
      decode_to(given.layout, given.planes, nullptr, {given.out_features}, ScalarType::Double);
  return aten_linear(given.x, weight, given.bias);
}

}  // namespace phiquant::cpu
