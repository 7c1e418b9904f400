// Products of at most 8 rows of x with an exact weight of the same 16-bit type, where there is no
// table of sub-cells' edges (product_strips.cu): fp16, groups of 32, planes at odd addresses. A
// warp takes a row of the weight, block after block of 512, a lane 16 weights, which never leave
// its registers. Warps do not wait for each other. Some 50 instructions a weight decode it, 1.3 a
// row of x multiply it (counted, not profiled): bytes take a fifth of the time.
#include "exact_run.cuh"
#include "exact_strips.h"
#include "sums.cuh"

namespace phiquant::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kMostRows = 8;

// Two 16-bit floats, the first one low.
template <class T>
__device__ __forceinline__ float2 widened_pair(uint32_t pair) {
  if constexpr (__is_same(T, __half)) {
    return __half22float2(*reinterpret_cast<const __half2*>(&pair));
  } else {
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xFFFF0000)};
  }
}

// The sum of 16 weights times x[column ..], of which `count` are there.
template <class T>
__device__ __forceinline__ float dot(const T* x, const uint32_t (&weights)[kRun], int count) {
  float sum = 0;
  if (count == kRun && (reinterpret_cast<uintptr_t>(x) & 15) == 0) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint4 eight = __ldg(reinterpret_cast<const uint4*>(x) + half);
      const uint32_t pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int at = half * 8 + 2 * i;
        const float2 both = widened_pair<T>(pairs[i]);
        const float2 pair = widened_pair<T>(weights[at] | weights[at + 1] << 16);
        sum = fmaf(both.x, pair.x, sum);
        sum = fmaf(both.y, pair.y, sum);
      }
    }
    return sum;
  }
#pragma unroll
  for (int i = 0; i < kRun; i++) {
    if (i < count) sum = fmaf(widened(x[i]), widened_pair<T>(weights[i]).x, sum);
  }
  return sum;
}

// This lane's sums over one block of 512, NaN if its remainders are not inside of the plane.
template <class T, Dtype stored, int rows>
__device__ __forceinline__ void add_block(const ProductTask& task, const Layout& layout,
                                          const GridTable& grid, int64_t row, uint32_t block,
                                          float (&sums)[rows]) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int64_t column = int64_t{block} * kBlock + lane * kRun,
                rest_of_row = layout.columns - column;
  const int count = rest_of_row < 0 ? 0 : rest_of_row < kRun ? static_cast<int>(rest_of_row) : kRun;
  uint32_t weights[kRun], rest[kRun];
  int width[kRun], total = 0;
  if (count > 0) {
    const int64_t octet = row * octets_of(layout) + column / kOctet;
    total = read_run<stored, true>(layout, task.planes, grid, octet, count, weights, width);
  }
  const int64_t begin = begin_of(task.remainder, row * blocks_of(layout) + block);
  const int before = sum_before(total);
  if (count == 0) return;
  Run run;
  const bool inside = open_run(task.remainder, begin, before, total, &run);
  if (inside) take_bits(run, width, rest);
#pragma unroll
  for (int i = 0; i < kRun; i++) weights[i] = inside ? weights[i] + rest[i] : 0x7FFF;
#pragma unroll
  for (int m = 0; m < rows; m++) {
    if (m < task.m)
      sums[m] += dot(static_cast<const T*>(task.x) + m * layout.columns + column, weights, count);
  }
}

template <class T, Dtype stored, int rows>
__global__ void __launch_bounds__(kThreads, rows == 1 ? 8 : 6) product_exact(ProductTask task) {
  __shared__ GridTable grid;
  const Layout layout = known<true>(task.layout);
  grid.fill(layout, power_of_two(-layout.deviation_bits));
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const auto blocks = static_cast<uint32_t>(blocks_of(layout));
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (row >= task.out_features) return;
  float sums[rows] = {};
  for (uint32_t block = 0; block < blocks; block++) {
    add_block<T, stored, rows>(task, layout, grid, row, block, sums);
  }
#pragma unroll
  for (int m = 0; m < rows; m++) {
    for (int step = 16; step > 0; step /= 2) sums[m] += __shfl_xor_sync(~0u, sums[m], step);
    if (lane == 0 && m < task.m) store_sum<T>(task, m, row, sums[m]);
  }
}

template <class T, Dtype stored>
void launch(const ProductTask& task, cudaStream_t stream) {
  const auto kernel = task.m == 1   ? product_exact<T, stored, 1>
                      : task.m == 2 ? product_exact<T, stored, 2>
                      : task.m <= 4 ? product_exact<T, stored, 4>
                                    : product_exact<T, stored, 8>;
  const int64_t blocks = (task.out_features + kWarps - 1) / kWarps;
  kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(task);
}

}  // namespace

bool multiplies_exact(const ProductTask& task) {
  if (multiplies_strips(task)) return true;
  return task.layout.deviation_bits == 4 && has_nibbles(task.layout, task.planes) &&
         task.dtype == task.remainder.stored && task.dtype != Dtype::kFloat32 &&
         task.m <= kMostRows;
}

bool multiplies_exact(const ProductTasks& tasks) { return multiplies_strips(tasks); }
void multiply_exact(const ProductTasks& tasks, cudaStream_t stream) {
  multiply_strips(tasks, stream);
}

void multiply_exact(const ProductTask& task, cudaStream_t stream) {
  if (multiplies_strips(task)) return multiply_strips(ProductTasks{{task}, 1}, stream);
  if (task.dtype == Dtype::kBFloat16) {
    launch<__nv_bfloat16, Dtype::kBFloat16>(task, stream);
  } else {
    launch<__half, Dtype::kFloat16>(task, stream);
  }
}

}  // namespace phiquant::cuda
