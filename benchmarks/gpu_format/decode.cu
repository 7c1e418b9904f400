// Decoders that ask whether the format suits a GPU: the simplest kernels that read it, not the ones
// to use. 4 index and 4 deviation bits, groups of 64, bf16; rows are multiples of 512 weights. A
// warp takes a block of 512 weights, a lane 16 of them; four lanes share a scale word.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "phiquant/grid.h"

struct Planes {
  const uint8_t* index;
  const uint8_t* deviation;
  const uint16_t* scale;
  const uint8_t* remainder;
  const uint16_t* offsets;
  const int64_t* starts;
  float unit;
};
enum Way { kIndex, kDeviation, kDeviationTable, kExact, kExactWindow };

__constant__ float kLine[8], kCubic[8];

__device__ __forceinline__ float level(float p, float line, float cubic) {
  return __fmul_rn(__fadd_rn(__fmul_rn(__fmul_rn(p, p), cubic), line), p);
}

__device__ __forceinline__ uint32_t nibble(uint2 words, int i) {
  return (i < 8 ? words.x : words.y) >> 4 * (i & 7) & 15;
}

struct Group {
  float line, cubic, scale;  // scale > 0
  uint32_t sign;             // of the scale, in bit 15
  int bend;
};

__device__ __forceinline__ Group group_of(const Planes& planes, int64_t block, int lane) {
  const uint32_t word = planes.scale[block * 8 + (lane >> 2)];
  const int bend = word & 7;
  const float scale = __half2float(__ushort_as_half(word & 0x7FF8)) * planes.unit;
  return {kLine[bend], kCubic[bend], scale, word & 0x8000, bend};
}

// The first remainder bit of this lane, after a sum of all widths of the lanes before.
__device__ __forceinline__ int64_t first_bit(const Planes& planes, int64_t block, int lane,
                                             int mine) {
  int sum = mine;
  for (int step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += before;
  }
  return (planes.starts[block >> 5] + planes.offsets[block]) * 8 + sum - mine;
}

// Remainders of these widths, from two words each, or shifted out of four that are loaded at once.
template <Way way>
__device__ __forceinline__ void take_bits(const Planes& planes, int64_t bit, int total,
                                          const int (&width)[16], uint32_t (&rest)[16]) {
  const uint32_t* words = reinterpret_cast<const uint32_t*>(planes.remainder) + (bit >> 5);
  int place = bit & 31;
  if (way == kExactWindow && place + total <= 128) {
    uint32_t a = words[0], b = words[1], c = words[2], d = words[3];
    int step = place;
#pragma unroll
    for (int i = 0; i < 16; i++) {
      a = __funnelshift_r(a, b, step);
      b = __funnelshift_r(b, c, step);
      c = __funnelshift_r(c, d, step);
      d >>= step;
      step = width[i];
      rest[i] = a & ((1u << step) - 1);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 16; i++) {
    const uint32_t* from = words + (place >> 5);
    rest[i] = __funnelshift_r(from[0], from[1], place & 31) & ((1u << width[i]) - 1);
    place += width[i];
  }
}

template <Way way>
__device__ __forceinline__ void decode_exact(const Planes& planes, int64_t block, int lane,
                                             uint2 index, uint2 deviation, const Group& group,
                                             float (&out)[16]) {
  uint32_t first[16], below = 0;
  int width[16], total = 0;
#pragma unroll
  for (int i = 0; i < 16; i++) {
    const int code = static_cast<int>(nibble(index, i) << 4 | nibble(deviation, i)) - 120;
    const uint32_t side = code < 0;
    below |= side << i;
    const float inner = static_cast<float>(side ? -code - 1 : code) * 0.0625f;
    const uint32_t low = __float_as_uint(level(inner, group.line, group.cubic) * group.scale);
    const uint32_t high =
        __float_as_uint(level(inner + 0.0625f, group.line, group.cubic) * group.scale);
    // Below zero a sub-cell holds its outer edge and not its inner one, but for zero itself.
    first[i] = (low + (side && low ? 0x10000u : 0xFFFFu)) >> 16;
    const int spare = static_cast<int>((high + (side ? 0x10000u : 0xFFFFu)) >> 16) -
                      static_cast<int>(first[i]) - 1;
    width[i] = spare > 0 ? 32 - __clz(spare) : 0;
    total += width[i];
  }
  uint32_t rest[16];
  take_bits<way>(planes, first_bit(planes, block, lane, total), total, width, rest);
#pragma unroll
  for (int i = 0; i < 16; i++) {
    const uint32_t negative = (below >> i & 1) << 31 ^ group.sign << 16;
    out[i] = __uint_as_float((first[i] + rest[i]) << 16 | negative);
  }
}

template <Way way>
__device__ __forceinline__ void decode_lane(const Planes& planes, int64_t block, int lane,
                                            const float* table, float (&out)[16]) {
  const uint2 index = reinterpret_cast<const uint2*>(planes.index + block * 256)[lane];
  const Group group = group_of(planes, block, lane);
  const float scale = group.sign ? -group.scale : group.scale;
  uint2 deviation{};
  if (way != kIndex) {
    deviation = reinterpret_cast<const uint2*>(planes.deviation + block * 256)[lane];
  }
  if (way == kExact || way == kExactWindow) {
    return decode_exact<way>(planes, block, lane, index, deviation, group, out);
  }
#pragma unroll
  for (int i = 0; i < 16; i++) {
    const uint32_t code = nibble(index, i) << 4 | nibble(deviation, i);
    if (way == kDeviationTable) {
      out[i] = table[group.bend * 256 + code] * scale;
    } else {
      const float p = way == kIndex ? static_cast<float>(code >> 4) - 7.0f
                                    : static_cast<float>(code) * 0.0625f - 7.46875f;
      out[i] = level(p, group.line, group.cubic) * scale;
    }
  }
}

template <Way way>
__device__ __forceinline__ void fill_table(float* table) {
  if (way != kDeviationTable) return;
  for (int i = threadIdx.x; i < 2048; i += blockDim.x) {
    const float p = static_cast<float>(i & 255) * 0.0625f - 7.46875f;
    table[i] = level(p, kLine[i >> 8], kCubic[i >> 8]);
  }
  __syncthreads();
}

template <Way way>
__global__ void __launch_bounds__(256) decode(Planes planes, __nv_bfloat16* out, int64_t blocks) {
  __shared__ float table[way == kDeviationTable ? 2048 : 1];
  fill_table<way>(table);
  const int lane = threadIdx.x & 31;
  for (int64_t block = int64_t{8} * blockIdx.x + threadIdx.x / 32; block < blocks;
       block += 8 * gridDim.x) {
    float weight[16];
    decode_lane<way>(planes, block, lane, table, weight);
    __nv_bfloat162 pair[8];
#pragma unroll
    for (int i = 0; i < 8; i++) pair[i] = __floats2bfloat162_rn(weight[2 * i], weight[2 * i + 1]);
    uint4* to = reinterpret_cast<uint4*>(out + block * 512 + lane * 16);
    to[0] = reinterpret_cast<uint4*>(pair)[0];
    to[1] = reinterpret_cast<uint4*>(pair)[1];
  }
}

// y[rows] = weight[rows, 512 * blocks_a_row] . x
template <Way way>
__global__ void __launch_bounds__(256)
    product(Planes planes, const float* x, float* y, int rows, int blocks_a_row) {
  extern __shared__ float shared_x[];
  __shared__ float table[way == kDeviationTable ? 2048 : 1];
  fill_table<way>(table);
  for (int i = threadIdx.x; i < blocks_a_row * 512; i += 256) shared_x[i] = x[i];
  __syncthreads();
  const int lane = threadIdx.x & 31;
  for (int row = blockIdx.x * 8 + threadIdx.x / 32; row < rows; row += gridDim.x * 8) {
    float sum = 0;
    for (int i = 0; i < blocks_a_row; i++) {
      float weight[16];
      decode_lane<way>(planes, int64_t{row} * blocks_a_row + i, lane, table, weight);
#pragma unroll
      for (int j = 0; j < 16; j++) sum += shared_x[i * 512 + lane * 16 + j] * weight[j];
    }
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (lane == 0) y[row] = sum;
  }
}

extern "C" {

void set_up() {
  float line[8], cubic[8];
  for (int i = 0; i < 8; i++) {
    line[i] = phiquant::kLines[i] / 8;
    cubic[i] = phiquant::kBends[i] / 512;
  }
  cudaMemcpyToSymbol(kLine, line, sizeof line);
  cudaMemcpyToSymbol(kCubic, cubic, sizeof cubic);
}

void run_decode(int way, Planes planes, void* out, int64_t blocks, cudaStream_t stream) {
  decltype(&decode<kIndex>)
      const ways[] = {decode<kIndex>, decode<kDeviation>, decode<kDeviationTable>, decode<kExact>,
                      decode<kExactWindow>};
  ways[way]<<<132 * 8, 256, 0, stream>>>(planes, static_cast<__nv_bfloat16*>(out), blocks);
}

void run_product(int way, Planes planes, const float* x, float* y, int rows, int blocks_a_row,
                 cudaStream_t stream) {
  decltype(&product<kIndex>)
      const ways[] = {product<kIndex>, product<kDeviation>, product<kDeviationTable>,
                      product<kExact>, product<kExactWindow>};
  ways[way]<<<132 * 6, 256, blocks_a_row * 2048, stream>>>(planes, x, y, rows, blocks_a_row);
}
}
