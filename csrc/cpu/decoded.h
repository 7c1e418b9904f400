// x . weight^T for few rows of x where the weights are decoded already: fp32, row after row.
#pragma once

#include "fused.h"

namespace phiquant::cpu::PHIQUANT_ISA {

inline constexpr int64_t kFewRows = 16;  // of x; for more, torch is faster

PHIQUANT_INLINE int64_t whole_vectors(int64_t columns) {
  return (columns + kLanes - 1) / kLanes * kLanes;
}

static bool takes_decoded(Dtype, int64_t m) { return m <= kFewRows; }

static int64_t decoded_x_bytes(int64_t columns, int64_t m) {
  return m * whole_vectors(columns) * int64_t{sizeof(float)};
}

static void prepare_decoded(int64_t columns, Dtype dtype, const void* x, int64_t m, uint8_t* to) {
  widen_rows(columns, whole_vectors(columns), dtype, x, m, reinterpret_cast<float*>(to));
}

// Rows [first, first + m) of x with all rows of the weight.
template <int m>
PHIQUANT_INLINE void multiply_rows(const DecodedTask& task, int64_t first) {
  constexpr int kChains = m == 1 ? 4 : 1;  // hide the latency of a sum
  const int64_t padded = whole_vectors(task.columns);
  const float* x = reinterpret_cast<const float*>(task.x) + first * padded;
  for (int64_t row = 0; row < task.rows; row++) {
    const float* weight = static_cast<const float*>(task.weight) + row * task.stride;
    vf sum[m][kChains]{};
    int64_t at = 0;
    for (; at + kChains * kLanes <= padded; at += kChains * kLanes) {
      for (int chain = 0; chain < kChains; chain++) {
        const int64_t here = at + chain * kLanes;
        const vf some = load<vf>(weight + here);
        for (int i = 0; i < m; i++) {
          sum[i][chain] = multiply_add(some, load<vf>(x + i * padded + here), sum[i][chain]);
        }
      }
    }
    for (; at < padded; at += kLanes) {
      for (int i = 0; i < m; i++) {
        sum[i][0] = multiply_add(load<vf>(weight + at), load<vf>(x + i * padded + at), sum[i][0]);
      }
    }
    for (int i = 0; i < m; i++) {
      for (int chain = 1; chain < kChains; chain++) sum[i][0] += sum[i][chain];
      store_sum(task, first + i, task.row + row, total(sum[i][0]));
    }
  }
}

static void multiply_decoded(const DecodedTask& task) {
  int64_t first = 0;
  for (; task.m - first >= 4; first += 4) multiply_rows<4>(task, first);
  for (; first < task.m; first++) multiply_rows<1>(task, first);
}

static int64_t decoded_rows(int64_t) { return 16; }

static constexpr DecodedKernels kDecodedKernels{Dtype::kFloat32, decoded_rows,    takes_decoded,
                                                decoded_x_bytes, prepare_decoded, multiply_decoded};

}  // namespace phiquant::cpu::PHIQUANT_ISA
