// Lossy planes to weights: a thread takes octets. Reads each plane once and writes each weight
// once, so bytes bind: at 4 + 4 bits and bf16 3.03 bytes a weight against some 12 instructions.
#include "exact.h"
#include "exceptions.h"
#include "floats.cuh"
#include "grid.cuh"
#include "places.cuh"

namespace phiquant::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTurns = 4;  // octets a thread, all loaded before the first is used

template <class T>
__device__ __forceinline__ void round_octet(const float (&levels)[kOctet], float scale,
                                            uint32_t (&out)[kOctet * sizeof(T) / 4]) {
#pragma unroll
  for (int i = 0; i < kOctet; i += 2) {
    const float low = __fmul_rn(levels[i], scale), high = __fmul_rn(levels[i + 1], scale);
    if constexpr (sizeof(T) == 2) {
      out[i / 2] = rounded_pair<T>(low, high);
    } else {
      out[i] = rounded<T>(low);
      out[i + 1] = rounded<T>(high);
    }
  }
}

// Nibbles on the phi-grid where rows are whole groups: all octets of the weight in a row.
// `deviation`: 0, 2, 4 or 8.
template <class T, int deviation>
__global__ void __launch_bounds__(kThreads)
    decode_nibbles(Layout layout, Planes planes, T* out, int64_t octets) {
  __shared__ GridTable grid;
  grid.fill(layout, 1.0f);
  __syncthreads();
  const float unit = power_of_two(layout.exponent);
  constexpr float kFirst = 0.5f / (1 << deviation) + 0.5f - 8.0f;
  const int shift = octets_shift(layout);
  const int64_t begin = int64_t{blockIdx.x} * (kThreads * kTurns) + threadIdx.x;
  uint32_t codes[kTurns][kOctet], words[kTurns];
#pragma unroll
  for (int turn = 0; turn < kTurns; turn++) {
    const int64_t octet = begin + turn * kThreads;
    if (octet >= octets) continue;
    read_nibbles<deviation>(planes, octet, codes[turn]);
    words[turn] = planes.scale[octet >> shift];
  }
#pragma unroll
  for (int turn = 0; turn < kTurns; turn++) {
    const int64_t octet = begin + turn * kThreads;
    if (octet >= octets) continue;
    const Scale scale = scale_of(layout, words[turn], unit);
    const Bend bend = grid.bends[scale.bend];
    float levels[kOctet];
#pragma unroll
    for (int i = 0; i < kOctet; i++) {
      const float code = __uint_as_float(0x4B000000u | codes[turn][i]) - 0x1p23f;  // exact
      levels[i] = bend.level(code * (1.0f / (1 << deviation)) + kFirst);           // exact inside
    }
    uint32_t weights[kOctet * sizeof(T) / 4];
    round_octet<T>(levels, scale.value, weights);
    uint4* to = reinterpret_cast<uint4*>(out + octet * kOctet);
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(T)) / 2; i++) {
      __stcs(to + i, reinterpret_cast<const uint4*>(weights)[i]);
    }
  }
}

// Any planes, any rows: bytes one by one. `wide`: blocks of threads that a row takes.
template <class T>
__global__ void __launch_bounds__(kThreads) decode_any(DecodeTask task, uint32_t wide) {
  __shared__ GridTable grid;
  const Layout& layout = task.layout;
  grid.fill(layout, 1.0f);
  __syncthreads();
  const int64_t row = blockIdx.x / wide, octets = octets_of(layout);
  const int64_t octet = int64_t{blockIdx.x % wide} * kThreads + threadIdx.x;
  const int64_t rest = layout.columns - octet * kOctet;
  if (rest <= 0) return;
  const int64_t place = stored_row(task, row) * octets + octet;
  uint32_t codes[kOctet];
  read_codes(layout, task.planes, place, codes);
  const uint32_t word = task.planes.scale[place >> octets_shift(layout)];
  const Scale scale = scale_of(layout, word, power_of_two(layout.exponent));
  const float step = power_of_two(-layout.deviation_bits);
  const float first = 0.5f * step + 0.5f - static_cast<float>(half_of(layout));
  float levels[kOctet];
#pragma unroll
  for (int i = 0; i < kOctet; i++) {
    const float p = static_cast<float>(codes[i]) * step + first;
    levels[i] =
        layout.grid == GridName::kPhi ? grid.bends[scale.bend].level(p) : grid.golden_level(p);
  }
  alignas(16) uint32_t weights[kOctet * sizeof(T) / 4];
  round_octet<T>(levels, scale.value, weights);
  store_octet(static_cast<T*>(task.out) + row * layout.columns + octet * kOctet,
              *reinterpret_cast<const T(*)[kOctet]>(weights), rest < kOctet ? rest : kOctet);
}

template <class T, int deviation>
void launch_nibbles(const DecodeTask& task, int64_t octets, cudaStream_t stream) {
  const int64_t blocks = (octets + kThreads * kTurns - 1) / (kThreads * kTurns);
  decode_nibbles<T, deviation><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(
      task.layout, task.planes, static_cast<T*>(task.out), octets);
}

template <class T>
void decode_lossy(const DecodeTask& task, cudaStream_t stream) {
  const Layout& layout = task.layout;
  const int64_t octets = groups_of(layout) * (layout.group_size / kOctet);
  const bool whole = layout.columns % layout.group_size == 0 && task.rows == nullptr;
  if (whole && has_nibbles(layout, task.planes)) {
    const auto launch = layout.deviation_bits == 0   ? launch_nibbles<T, 0>
                        : layout.deviation_bits == 2 ? launch_nibbles<T, 2>
                        : layout.deviation_bits == 4 ? launch_nibbles<T, 4>
                                                     : launch_nibbles<T, 8>;
    return launch(task, task.count * octets, stream);
  }
  const int64_t wide = (octets + kThreads - 1) / kThreads;
  decode_any<T><<<static_cast<unsigned>(task.count * wide), kThreads, 0, stream>>>(
      task, static_cast<uint32_t>(wide));
}

}  // namespace

void decode(const DecodeTask& task, cudaStream_t stream) {
  if (task.count == 0) return;
  if (task.remainder.payload != nullptr) {
    decode_exact(task, stream);
  } else if (task.dtype == Dtype::kFloat32) {
    decode_lossy<float>(task, stream);
  } else if (task.dtype == Dtype::kBFloat16) {
    decode_lossy<__nv_bfloat16>(task, stream);
  } else {
    decode_lossy<__half>(task, stream);
  }
  if (task.exceptions.count > 0) put_exceptions(task, stream);
}

}  // namespace phiquant::cuda
