// A thread a row of the result: few weights have exceptions, and those few.
#include "exceptions.h"

#include "floats.cuh"
#include "places.cuh"

namespace phiquant::cuda {
namespace {

constexpr int kThreads = 128;

// fp32 bits to T: rounded and saturated if finite. An infinity stays one; a NaN keeps what of its
// payload T holds, and stays a NaN.
template <class T>
__device__ __forceinline__ auto narrowed(uint32_t bits) {
  if constexpr (sizeof(T) == 4) {
    return bits;
  } else {
    const uint32_t magnitude = bits & 0x7FFFFFFF;
    if (magnitude < 0x7F800000) return rounded<T>(__uint_as_float(bits));
    constexpr bool brain = __is_same(T, __nv_bfloat16);
    constexpr uint32_t shift = brain ? 16 : 13, infinity = brain ? 0x7F80 : 0x7C00;
    constexpr uint32_t quiet = brain ? 0x40 : 0x200;
    const uint32_t payload = (magnitude & 0x7FFFFF) >> shift;
    const bool lost = payload == 0 && magnitude > 0x7F800000;
    return static_cast<uint16_t>((bits >> 16 & 0x8000) | infinity | (lost ? quiet : payload));
  }
}

// The number of the first exception whose place is not below `place`.
__device__ __forceinline__ int64_t first_from(const Exceptions& all, int64_t place) {
  int64_t low = 0, high = all.count;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (all.pairs[2 * middle] < place) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

template <class T>
__global__ void __launch_bounds__(kThreads) put(DecodeTask task) {
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row >= task.count) return;
  const Exceptions& all = task.exceptions;
  const int64_t columns = task.layout.columns, begin = stored_row(task, row) * columns;
  using Bits = decltype(narrowed<T>(0));
  Bits* const out = static_cast<Bits*>(task.out) + row * columns;
  for (int64_t i = first_from(all, begin); i < all.count; i++) {
    const int64_t column = all.pairs[2 * i] - begin;
    if (column < 0 || column >= columns) break;
    out[column] = narrowed<T>(static_cast<uint32_t>(all.pairs[2 * i + 1]));
  }
}

}  // namespace

void put_exceptions(const DecodeTask& task, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>((task.count + kThreads - 1) / kThreads);
  const auto kernel = task.dtype == Dtype::kFloat32    ? put<float>
                      : task.dtype == Dtype::kBFloat16 ? put<__nv_bfloat16>
                                                       : put<__half>;
  kernel<<<blocks, kThreads, 0, stream>>>(task);
}

}  // namespace phiquant::cuda
