// Few rows and the experts that they belong to, which only the device knows: a block takes 8 rows
// of one expert's weight and ends at once if no row of x is its. So experts that are not used are
// not read, and nothing waits for the device.
//
// A warp takes a row of the weight, a lane an octet at a time, for up to 8 rows of x together. Sums
// are fp32 of fp32 weights, in one order. Instructions a weight: 2 to unpack, 7 to decode, and 2
// for each row of x: an H100 reads 3 bytes in the time of 26 of them, so up to 8 rows instructions
// and bytes come to about the same.
#include "grouped.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "grid.cuh"
#include "octets.cuh"
#include "sixteen.h"

namespace phiquant::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kTokens = 8;  // rows of x that share one decoding of the weight

// `nibbles`: as has_nibbles says.
__device__ __forceinline__ void read_octet(const Layout& layout, const Planes& planes, bool nibbles,
                                           int64_t octet, uint32_t (&codes)[kOctet]) {
  if (!nibbles) return read_codes(layout, planes, octet, codes);
  switch (layout.deviation_bits) {
    case 0:
      return read_nibbles<0>(planes, octet, codes);
    case 2:
      return read_nibbles<2>(planes, octet, codes);
    case 4:
      return read_nibbles<4>(planes, octet, codes);
    default:
      return read_nibbles<8>(planes, octet, codes);
  }
}

// An octet's weights in fp32; NaN where the scale word is none.
__device__ __forceinline__ void decode_octet(const Layout& layout, const Planes& planes,
                                             const GridTable& grid, bool nibbles, int64_t octet,
                                             float (&weight)[kOctet]) {
  uint32_t codes[kOctet];
  read_octet(layout, planes, nibbles, octet, codes);
  const uint32_t word = __ldg(planes.scale + (octet >> octets_shift(layout)));
  const Scale scale = scale_of(layout, word, power_of_two(layout.exponent));
  const float step = power_of_two(-layout.deviation_bits);
  const float first = 0.5f * step + 0.5f - static_cast<float>(half_of(layout));
#pragma unroll
  for (int i = 0; i < kOctet; i++) {
    const float p = static_cast<float>(codes[i]) * step + first;  // exact
    const float level =
        layout.grid == GridName::kPhi ? grid.bends[scale.bend].level(p) : grid.golden_level(p);
    weight[i] = saturated(__fmul_rn(level, scale.value));
  }
}

template <class T>
__device__ __forceinline__ float dot(const T* x, int count, bool aligned,
                                     const float (&weight)[kOctet]) {
  alignas(16) T octet[kOctet];
  if (aligned) {
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(T)) / 2; i++) {
      reinterpret_cast<uint4*>(octet)[i] = __ldg(reinterpret_cast<const uint4*>(x) + i);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kOctet; i++) octet[i] = i < count ? x[i] : T(0.0f);
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kOctet; i++) {
    // Behind the last column the pad of the weight may be anything.
    if (aligned || i < count) sum = fmaf(widened(octet[i]), weight[i], sum);
  }
  return sum;
}

template <class T>
__device__ __forceinline__ T narrowed(float value) {
  if constexpr (sizeof(T) == 4) return value;
  if constexpr (__is_same(T, __half)) return __float2half_rn(value);
  if constexpr (__is_same(T, __nv_bfloat16)) return __float2bfloat16_rn(value);
}

// One row of the weight with the rows of x from `first` on, at most kTokens.
template <class T>
__device__ __forceinline__ void multiply_row(const GroupedTask& task, const GridTable& grid,
                                             bool nibbles, bool aligned, int64_t expert,
                                             int64_t row, int64_t first, int many) {
  const Layout& layout = task.layout;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t octets = octets_of(layout), begin = (expert * task.out_features + row) * octets;
  const T* const x = static_cast<const T*>(task.x) + first * layout.columns;
  float sums[kTokens] = {};
  for (int64_t octet = lane; octet * kOctet < layout.columns; octet += 32) {
    float weight[kOctet];
    decode_octet(layout, task.planes, grid, nibbles, begin + octet, weight);
    const int64_t column = octet * kOctet;
    const int count = static_cast<int>(min(layout.columns - column, int64_t{kOctet}));
#pragma unroll
    for (int t = 0; t < kTokens; t++) {
      if (t < many) sums[t] += dot(x + t * layout.columns + column, count, aligned, weight);
    }
  }
#pragma unroll
  for (int t = 0; t < kTokens; t++) {
    if (t >= many) break;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sums[t] += __shfl_xor_sync(~0u, sums[t], step);
    if (lane == 0) {
      static_cast<T*>(task.out)[(first + t) * task.out_features + row] = narrowed<T>(sums[t]);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    multiply_experts(GroupedTask task, bool nibbles, bool aligned) {
  const int64_t expert = blockIdx.y;
  const int64_t start = task.ends.at(expert - 1, task.tokens);
  const int64_t stop = task.ends.at(expert, task.tokens);
  if (start >= stop) return;
  __shared__ GridTable grid;
  grid.fill(task.layout, 1.0f);
  __syncthreads();
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (row >= task.out_features) return;
  for (int64_t first = start; first < stop; first += kTokens) {
    const int many = static_cast<int>(min(stop - first, int64_t{kTokens}));
    multiply_row<T>(task, grid, nibbles, aligned, expert, row, first, many);
  }
}

template <class T>
void launch(const GroupedTask& task, cudaStream_t stream) {
  const bool nibbles = has_nibbles(task.layout, task.planes);
  const bool aligned =
      task.layout.columns % kOctet == 0 && (reinterpret_cast<uintptr_t>(task.x) & 15) == 0;
  const dim3 blocks(static_cast<unsigned>((task.out_features + kWarps - 1) / kWarps),
                    static_cast<unsigned>(task.experts));
  const auto bytes = static_cast<size_t>(task.tokens * task.out_features) * sizeof(T);
  cudaMemsetAsync(task.out, 0, bytes, stream);
  if (task.experts == 0) return;
  multiply_experts<T><<<blocks, kThreads, 0, stream>>>(task, nibbles, aligned);
}

}  // namespace

void multiply_grouped(const GroupedTask& task, cudaStream_t stream) {
  if (task.tokens == 0 || task.out_features == 0) return;
  if (task.experts > 0 && multiplies_sixteen(task)) return multiply_sixteen(task, stream);
  switch (task.dtype) {
    case Dtype::kFloat32:
      return launch<float>(task, stream);
    case Dtype::kBFloat16:
      return launch<__nv_bfloat16>(task, stream);
    default:
      return launch<__half>(task, stream);
  }
}

}  // namespace phiquant::cuda
