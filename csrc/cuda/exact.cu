// All planes to the original weights: a warp takes a block of 512, a lane 16 of them. Widths follow
// from the lossy planes, so that one sum over the warp says where every remainder is. Most bf16
// weights have a faster way: exact_strips.cu.
#include "exact.h"

#include "exact_run.cuh"
#include "exact_strips.h"
#include "floats.cuh"
#include "places.cuh"

namespace phiquant::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// A stored float's bits, of `stored`, to those of T.
template <class T, Dtype stored>
__device__ __forceinline__ auto converted(uint32_t bits) {
  constexpr bool same = (stored == Dtype::kFloat32 && sizeof(T) == 4) ||
                        (stored == Dtype::kBFloat16 && __is_same(T, __nv_bfloat16)) ||
                        (stored == Dtype::kFloat16 && __is_same(T, __half));
  if constexpr (same && sizeof(T) == 4) {
    return bits;
  } else if constexpr (same) {
    return static_cast<uint16_t>(bits);
  } else {
    float value;
    if constexpr (stored == Dtype::kFloat32) value = __uint_as_float(bits);
    if constexpr (stored == Dtype::kBFloat16) value = __uint_as_float(bits << 16);
    if constexpr (stored == Dtype::kFloat16) {
      value = __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
    }
    return rounded<T>(value);
  }
}

template <class T, Dtype stored, bool nibbles>
__global__ void __launch_bounds__(kThreads) decode_blocks(DecodeTask task, uint32_t blocks) {
  __shared__ GridTable grid;
  const Layout layout = known<nibbles>(task.layout);
  grid.fill(layout, power_of_two(-layout.deviation_bits));
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const uint32_t number = blockIdx.x * kWarps + threadIdx.x / 32;
  if (number >= blocks) return;
  const auto wide = static_cast<uint32_t>(blocks_of(layout));
  const int64_t row = number / wide, column = int64_t{number % wide} * kBlock;
  const int64_t stored_at = stored_row(task, row), begin_column = column + lane * kRun;
  const int64_t rest_of_row = layout.columns - begin_column;
  const int count = rest_of_row < 0 ? 0 : rest_of_row < kRun ? static_cast<int>(rest_of_row) : kRun;

  uint32_t first[kRun], rest[kRun];
  int width[kRun], total = 0;
  if (count > 0) {
    const int64_t octet = stored_at * octets_of(layout) + begin_column / kOctet;
    total = read_run<stored, nibbles>(layout, task.planes, grid, octet, count, first, width);
  }
  const int64_t begin = begin_of(task.remainder, stored_at * wide + number % wide);
  const int before = sum_before(total);
  if (count == 0) return;
  Run run;
  const bool inside = open_run(task.remainder, begin, before, total, &run);
  using Bits = decltype(converted<T, stored>(0));
  alignas(16) Bits weights[kRun];
  if (inside) {
    take_bits(run, width, rest);
#pragma unroll
    for (int i = 0; i < kRun; i++) weights[i] = converted<T, stored>(first[i] + rest[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kRun; i++) weights[i] = rounded<T>(quiet_nan());
  }
  Bits* to = static_cast<Bits*>(task.out) + row * layout.columns + begin_column;
  store_octet(to, *reinterpret_cast<const Bits(*)[kOctet]>(weights), count);
  store_octet(to + kOctet, *reinterpret_cast<const Bits(*)[kOctet]>(weights + kOctet),
              count - kOctet);
}

template <class T, Dtype stored>
void launch(const DecodeTask& task, cudaStream_t stream) {
  const auto blocks = static_cast<uint32_t>(task.count * blocks_of(task.layout));
  const uint32_t grid = (blocks + kWarps - 1) / kWarps;
  const bool nibbles = task.layout.deviation_bits == 4 && has_nibbles(task.layout, task.planes);
  const auto kernel = nibbles ? decode_blocks<T, stored, true> : decode_blocks<T, stored, false>;
  kernel<<<grid, kThreads, 0, stream>>>(task, blocks);
}

template <Dtype stored>
void decode_stored(const DecodeTask& task, cudaStream_t stream) {
  if (task.dtype == Dtype::kFloat32) return launch<float, stored>(task, stream);
  if (task.dtype == Dtype::kBFloat16) return launch<__nv_bfloat16, stored>(task, stream);
  launch<__half, stored>(task, stream);
}

}  // namespace

void decode_exact(const DecodeTask& task, cudaStream_t stream) {
  if (decodes_strips(task)) return decode_strips(task, stream);
  switch (task.remainder.stored) {
    case Dtype::kFloat32:
      return decode_stored<Dtype::kFloat32>(task, stream);
    case Dtype::kBFloat16:
      return decode_stored<Dtype::kBFloat16>(task, stream);
    default:
      return decode_stored<Dtype::kFloat16>(task, stream);
  }
}

}  // namespace phiquant::cuda
