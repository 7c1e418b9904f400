// fp32 to the types of weights: rounded to nearest even and saturated, NaN stays NaN.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace phiquant::cuda {

inline constexpr float kLargestFloat = 0x1.fffffep+127f;

__device__ __forceinline__ float quiet_nan() { return __uint_as_float(0x7FFFFFFF); }

// An infinity becomes the largest float.
__device__ __forceinline__ float saturated(float value) {
  asm("min.NaN.f32 %0, %0, %1;" : "+f"(value) : "f"(kLargestFloat));
  asm("max.NaN.f32 %0, %0, %1;" : "+f"(value) : "f"(-kLargestFloat));
  return value;
}

// Two floats to a pair of 16 bits, the first one low. One instruction.
template <class T>
__device__ __forceinline__ uint32_t rounded_pair(float low, float high) {
  uint32_t pair;
  if constexpr (sizeof(T) == 2 && __is_same(T, __half)) {
    asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.satfinite.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
}

// A weight type's bits of one float.
template <class T>
__device__ __forceinline__ auto rounded(float value) {
  if constexpr (sizeof(T) == 4) {
    return __float_as_uint(saturated(value));
  } else {
    return static_cast<uint16_t>(rounded_pair<T>(value, 0.0f));
  }
}

__device__ __forceinline__ float widened(float value) { return value; }
__device__ __forceinline__ float widened(__half value) { return __half2float(value); }
__device__ __forceinline__ float widened(__nv_bfloat16 value) { return __bfloat162float(value); }

}  // namespace phiquant::cuda
