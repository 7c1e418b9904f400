// x . weight^T for few rows of x: every group is decoded once, in registers or in the L1 cache, and
// multiplied with all rows of x.
#pragma once

#include "decode.h"
#include "search.h"

namespace phiquant::cpu::PHIQUANT_ISA {

// x[m, columns] of dtype to fp32 [m, padded], with zeros after the last column.
PHIQUANT_INLINE void widen_rows(int64_t columns, int64_t padded, Dtype dtype, const void* x,
                                int64_t m, float* prepared) {
  const int64_t whole = columns / kLanes * kLanes, width = size_of(dtype);
  for (int64_t row = 0; row < m; row++) {
    const uint8_t* from = static_cast<const uint8_t*>(x) + row * columns * width;
    float* to = prepared + row * padded;
    for (int64_t at = 0; at < whole; at += kLanes) {
      store(to + at, load_weights(dtype, from + at * width, 0));
    }
    alignas(64) uint8_t rest[kLanes * 4] = {};
    alignas(64) float last[kLanes];
    std::memcpy(rest, from + whole * width, static_cast<size_t>((columns - whole) * width));
    store(last, load_weights(dtype, rest, 0));
    for (int64_t at = whole; at < padded; at++) to[at] = at < columns ? last[at - whole] : 0.0f;
  }
}

static void prepare(const Layout& layout, Dtype dtype, const void* x, int64_t m, float* prepared) {
  widen_rows(layout.columns, groups_of(layout) * layout.group_size, dtype, x, m, prepared);
}

PHIQUANT_INLINE float total(vf value) {
  vf parts[kParts]{};
  parts[0] = value;
  return sum_lanes(parts);
}

template <class Task>
PHIQUANT_INLINE void store_sum(const Task& task, int64_t m, int64_t row, float sum) {
  if (task.bias != nullptr) sum += task.bias[row];
  const int64_t at = m * task.out_features + row;
  alignas(64) float lanes[kLanes] = {sum};
  if (task.dtype == Dtype::kFloat32) {
    static_cast<float*>(task.out)[at] = sum;
    return;
  }
  alignas(64) uint16_t bits[kLanes];
  if (task.dtype == Dtype::kBFloat16) {
    floats_to_bfloat16s(bits, load<vf>(lanes));
  } else {
    floats_to_halves(bits, load<vf>(lanes));
  }
  static_cast<uint16_t*>(task.out)[at] = bits[0];
}

inline constexpr int kMostRows = 8;  // of x

static int64_t fused_rows(const Layout&) { return kMostRows; }

template <class Multiply>
PHIQUANT_INLINE bool for_groups(const FusedTask& task, int64_t row, Multiply multiply) {
  const int64_t groups = groups_of(task.layout);
  Scales scales;
  bool good = true;
  for (int64_t start = 0; start < groups; start += kStretch) {
    const int64_t count = groups - start < kStretch ? groups - start : kStretch;
    good &= read_words(task.layout, task.planes.scale + row * groups + start, count, &scales);
    for (int64_t i = 0; i < count; i++) multiply(start + i, scales.scale[i], scales.bend[i]);
  }
  return good;
}

static bool fused_row(const FusedTask& task, const Curve& curve, int64_t row) {
  const Layout& layout = task.layout;
  const int64_t groups = groups_of(layout), padded = groups * layout.group_size;
  vf sum[kMostRows]{};
  alignas(64) float weights[kLargestGroup];
  const bool good = for_groups(task, row, [&](int64_t group, float scale, int32_t bend) {
    decode_group(layout, task.planes, task.levels, row * groups + group, curve, scale, bend,
                 weights);
    for (int64_t m = 0; m < task.m; m++) {
      const float* x = task.x + m * padded + group * layout.group_size;
      for (int at = 0; at < layout.group_size; at += kLanes) {
        sum[m] = multiply_add(load<vf>(weights + at), load<vf>(x + at), sum[m]);
      }
    }
  });
  for (int64_t m = 0; m < task.m; m++) store_sum(task, m, row, total(sum[m]));
  return good;
}

static Status fused(const FusedTask& task, int64_t begin, int64_t end) {
  const Curve curve = Curve::of(task.layout);
  bool good = true;
  for (int64_t row = begin; row < end; row++) good &= fused_row(task, curve, row);
  return good ? Status::kOk : Status::kBadWord;
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
