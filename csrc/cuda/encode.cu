// Weights to planes: a group's 16 candidates, 8 bends with both signs, are scored by 16 lanes, each
// by a binary search for every weight; then lanes share the codes of the best among them.
//
// Data contract: weights in any alignment of their own; planes are written whole, the pad of a
// short group with zeros. No atomics, one order of sums: the planes are the CPU's to the bit.
//
// Instructions a weight and candidate with 8 bits: 64 for the search, 20 for both errors, 2 for
// loads. 16 candidates are some 1400 a weight, which an H100 issues 20 G times a second; bytes, 3 a
// weight, take nothing beside that. There is no first pass that rules candidates out, as on the
// CPU: it would save at most nine tenths of what is not missed.
#include "encode.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "octets.cuh"
#include "trial.cuh"

namespace phiquant::cuda {
namespace {

constexpr int kCandidates = 2 * kBendCount;  // lanes of a group, bend by bend, the positive first
constexpr int kThreads = 256;
constexpr int kGroups = kThreads / kCandidates;  // of a block
constexpr int kStride = kLargestGroup + kQuad;   // two groups of a warp meet different banks

struct Group {
  const float* weight;      // turned by no sign; 0 at the pad and where a weight is not finite
  const float* importance;  // of its columns, or null
  int count;                // without the pad
  float unit;               // a power of two that keeps squares in range; 1 if `plain`
  bool plain;               // nothing is near fp32's borders
};

__device__ __forceinline__ float maximum_of_group(float mine) {
#pragma unroll
  for (int step = kCandidates / 2; step > 0; step /= 2) {
    mine = fmaxf(mine, __shfl_xor_sync(~0u, mine, step));
  }
  return mine;
}

// The power of two, from 2^-126 to 2^126, that brings `size` to [1/2, 1).
__device__ __forceinline__ float normaliser(float size) {
  const int field = static_cast<int>(__float_as_uint(size) >> 23);
  if (size == 0) return 1.0f;
  const int exponent = field == 0 ? -126 : field - 126;
  return power_of_two(exponent > 126 ? -126 : -exponent);
}

// Reads this lane's weights of a group; false if one is not finite.
template <class T>
__device__ __forceinline__ bool load_weights(const T* from, int count, int size, int lane,
                                             float* weight, float* above, float* below) {
  bool finite = true;
  *above = *below = 0;
  for (int i = lane; i < size; i += kCandidates) {
    float value = i < count ? widened(from[i]) : 0.0f;
    if (!(fabsf(value) <= kLargestFloat)) {
      finite = false;
      value = 0;
    }
    weight[i] = value;
    *above = fmaxf(*above, value);
    *below = fmaxf(*below, -value);
  }
  return finite;
}

// What `fit` minimises, where `bits` are those of the group's remainders.
__device__ __forceinline__ double score_of(const EncodeTask& task, double index, double deepest,
                                           int bits) {
  if (task.fit == Fit::kIndex || task.layout.deviation_bits == 0) return index;
  if (task.fit == Fit::kDeviation) return deepest;
  const double joint = __dmul_rn(__dmul_rn(index, index), deepest);
  if (task.prices.step == 0) return joint;
  const int units = bits * task.prices.step;
  const double whole = __hiloint2double((1023 + (units >> 5)) << 20, 0);
  return __dmul_rn(joint, __dmul_rn(whole, task.prices.thirty_seconds[units & 31]));
}

template <class Sums, bool golden, bool priced>
__device__ __forceinline__ double score(const EncodeTask& task, const Group& group,
                                        const Trial<golden>& trial) {
  const Layout& layout = task.layout;
  const float half = static_cast<float>(half_of(layout));
  const float width = power_of_two(-layout.deviation_bits);
  const bool weighted = group.importance != nullptr;
  Sums index, deepest;
  int bits = 0;
  for (int base = 0; base < layout.group_size; base += kSumLanes) {
#pragma unroll
    for (int quad = 0; quad < kSumLanes; quad += kQuad) {
      const float4 four = *reinterpret_cast<const float4*>(group.weight + base + quad);
      const float weight[kQuad] = {trial.turned(four.x), trial.turned(four.y), trial.turned(four.z),
                                   trial.turned(four.w)};
      float sought[kQuad], p[kQuad], cell[kQuad];
#pragma unroll
      for (int i = 0; i < kQuad; i++) {
        sought[i] = below_zero(weight[i]);
        p[i] = 0.5f - half;
      }
      descend(trial, sought, layout.index_bits, half, p);
#pragma unroll
      for (int i = 0; i < kQuad; i++) cell[i] = p[i] + 0.5f;
      descend(trial, sought, layout.deviation_bits, 0.5f, p);
#pragma unroll
      for (int i = 0; i < kQuad; i++) {
        const int at = base + quad + i;
        if (at >= group.count) break;
        const float heavy = weighted ? __ldg(group.importance + at) : 1.0f;
        index.add(quad + i, trial.error(cell[i], weight[i], group.unit), heavy, weighted);
        deepest.add(quad + i, trial.error(p[i] + width / 2, weight[i], group.unit), heavy,
                    weighted);
        if constexpr (priced) bits += remainder_bits(trial, layout, task.dtype, p[i], width);
      }
    }
  }
  return score_of(task, index.total(), deepest.total(), bits);
}

__device__ __forceinline__ void put_octet(uint8_t* plane, int64_t octet, int bits,
                                          const uint32_t (&codes)[kOctet], int shift) {
  if (bits == 0) return;
  uint64_t packed = 0;
#pragma unroll
  for (int i = 0; i < kOctet; i++) {
    packed |= static_cast<uint64_t>(codes[i] >> shift & ((1u << bits) - 1)) << i * bits;
  }
  if (bits == 4) {  // the plane is new, and aligned as such
    reinterpret_cast<uint32_t*>(plane)[octet] = static_cast<uint32_t>(packed);
    return;
  }
  for (int i = 0; i < bits; i++) plane[octet * bits + i] = static_cast<uint8_t>(packed >> 8 * i);
}

// The codes of eight weights of a group, from `first` on.
template <bool golden>
__device__ __forceinline__ void write_octet(const EncodeTask& task, const Group& group,
                                            const Trial<golden>& trial, int64_t octet, int first) {
  const Layout& layout = task.layout;
  const float half = static_cast<float>(half_of(layout));
  float weight[kOctet], p[kOctet];
  uint32_t codes[kOctet];
#pragma unroll
  for (int i = 0; i < kOctet; i++) {
    weight[i] = below_zero(trial.turned(group.weight[first + i]));
    p[i] = 0.5f - half;
  }
  descend(trial, weight, code_bits(layout), half, p);
  const float parts = power_of_two(layout.deviation_bits);
#pragma unroll
  for (int i = 0; i < kOctet; i++) {
    const float code = (p[i] + (half - 0.5f)) * parts;  // exact
    codes[i] = first + i < group.count ? static_cast<uint32_t>(code) : 0;
  }
  put_octet(task.index, octet, layout.index_bits, codes, layout.deviation_bits);
  put_octet(task.deviation, octet, high_bits(layout), codes, low_bits(layout));
  put_octet(task.deviation_low, octet, low_bits(layout), codes, 0);
}

// The candidate with the least score of a group, the first of equals.
__device__ __forceinline__ int best_of(double score, int candidate) {
#pragma unroll
  for (int step = 1; step < kCandidates; step *= 2) {
    const double other = __shfl_xor_sync(~0u, score, step);
    const int its = __shfl_xor_sync(~0u, candidate, step);
    if (other < score || (other == score && its < candidate)) {
      score = other;
      candidate = its;
    }
  }
  return candidate;
}

template <class T, bool golden, bool priced>
__global__ void __launch_bounds__(kThreads) encode_groups(EncodeTask task, int64_t groups) {
  __shared__ GridTable grid;
  __shared__ alignas(16) float weights[kGroups][kStride];
  const Layout& layout = task.layout;
  grid.fill(layout, 1.0f);
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % kCandidates;
  float* const weight = weights[threadIdx.x / kCandidates];
  const int64_t mine = int64_t{blockIdx.x} * kGroups + threadIdx.x / kCandidates;
  const int64_t number = min(mine, groups - 1);  // all lanes of a warp take part in all
  const int64_t in_row = groups_of(layout), row = number / in_row;
  const int64_t column = (number - row * in_row) * layout.group_size;
  const int count = static_cast<int>(min(layout.columns - column, int64_t{layout.group_size}));
  const T* const from = static_cast<const T*>(task.weight) + row * layout.columns + column;
  float above, below;
  const bool finite = load_weights(from, count, layout.group_size, lane, weight, &above, &below);
  __syncwarp();  // shuffles alone do not order what lanes wrote before
  if (!finite && !task.exact) *task.fault = Fault::kNotFinite;
  above = maximum_of_group(above);
  below = maximum_of_group(below);

  const int bend = golden ? 0 : lane / 2;
  Trial<golden> trial{&grid, {}, 0, lane % 2 != 0};
  if constexpr (!golden) trial.bend = grid.bends[bend];
  const float half = static_cast<float>(half_of(layout));
  const Word word = smallest_word(layout, trial.level(half + 0.125f), trial.level(half - 0.5f),
                                  trial.negative ? below : above, trial.negative ? above : below);
  trial.scale = word.scale;
  const float largest = fmaxf(above, below), widest = maximum_of_group(word.scale);
  const bool plain = largest >= 0x1p-30f && largest <= 0x1p30f && widest <= 0x1p30f;
  const Group group{weight, task.importance == nullptr ? nullptr : task.importance + column, count,
                    plain ? 1.0f : normaliser(fmaxf(largest, widest)), plain};
  double mark = INFINITY;
  if (golden) {
    if (lane < 2) mark = score<WideSums, golden, priced>(task, group, trial);
  } else if (plain) {
    mark = score<PlainSums, golden, priced>(task, group, trial);
  } else {
    mark = score<WideSums, golden, priced>(task, group, trial);
  }
  __syncwarp();
  const int best = best_of(mark, lane), source = best | (static_cast<int>(threadIdx.x) & 16);
  trial.scale = __shfl_sync(~0u, trial.scale, source);
  trial.negative = best % 2 != 0;
  if constexpr (!golden) trial.bend = grid.bends[best / 2];
  const int magnitude = __shfl_sync(~0u, word.magnitude, source);
  if (mine >= groups) return;
  const int octets = layout.group_size / kOctet;
  if (lane < octets) write_octet(task, group, trial, number * octets + lane, lane * kOctet);
  if (lane == 0) {
    const int sign = trial.negative ? 0x8000 : 0;
    task.scale[number] = static_cast<uint16_t>(magnitude | sign | (golden ? 0 : best / 2));
  }
}

template <class T, bool golden>
void launch(const EncodeTask& task, cudaStream_t stream) {
  const int64_t groups = task.rows * groups_of(task.layout);
  const auto blocks = static_cast<unsigned>((groups + kGroups - 1) / kGroups);
  const auto kernel = task.prices.step != 0 && task.fit == Fit::kJoint
                          ? encode_groups<T, golden, true>
                          : encode_groups<T, golden, false>;
  kernel<<<blocks, kThreads, 0, stream>>>(task, groups);
}

template <class T>
void launch_grid(const EncodeTask& task, cudaStream_t stream) {
  task.layout.grid == GridName::kGolden ? launch<T, true>(task, stream)
                                        : launch<T, false>(task, stream);
}

}  // namespace

void encode(const EncodeTask& task, cudaStream_t stream) {
  if (task.rows == 0) return;
  switch (task.dtype) {
    case Dtype::kFloat32:
      return launch_grid<float>(task, stream);
    case Dtype::kBFloat16:
      return launch_grid<__nv_bfloat16>(task, stream);
    default:
      return launch_grid<__half>(task, stream);
  }
}

}  // namespace phiquant::cuda
