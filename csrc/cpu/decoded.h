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

// `rows` rows of the weight from `row` on, with m rows of x from `first` on: side by side, so that
// what is loaded is used more than once, and no sum waits for itself. The order of a sum is the
// same for any number of rows of either.
template <int rows, int m>
PHIQUANT_INLINE void multiply_block(const DecodedTask& task, int64_t row, int64_t first) {
  const int64_t padded = whole_vectors(task.columns);
  const float* x = reinterpret_cast<const float*>(task.x) + first * padded;
  const float* weight = static_cast<const float*>(task.weight) + row * task.stride;
  vf sum[rows][m]{};
  for (int64_t at = 0; at < padded; at += kLanes) {
    vf some[rows];
    for (int r = 0; r < rows; r++) some[r] = load<vf>(weight + r * task.stride + at);
    for (int i = 0; i < m; i++) {
      const vf factor = load<vf>(x + i * padded + at);
      for (int r = 0; r < rows; r++) sum[r][i] = multiply_add(some[r], factor, sum[r][i]);
    }
  }
  for (int i = 0; i < m; i++) {
    for (int r = 0; r < rows; r++) {
      store_sum(task, first + i, task.row + row + r, total(sum[r][i]));
    }
  }
}

// All rows of the weight, as many side by side as registers hold the sums of.
template <int m>
static void multiply_rows(const DecodedTask& task, int64_t first) {
  constexpr int kRegisters = PHIQUANT_BYTES == 64 ? 32 : 16;
  constexpr int kRows = 4 * (m + 1) < kRegisters ? 4 : 2 * (m + 1) < kRegisters ? 2 : 1;
  int64_t row = 0;
  for (; task.rows - row >= kRows; row += kRows) multiply_block<kRows, m>(task, row, first);
  for (; row < task.rows; row++) multiply_block<1, m>(task, row, first);
}

// At most eight rows of x at a time: all that are left.
template <int m = kMostRows>
static void multiply_rest(const DecodedTask& task, int64_t first) {
  if constexpr (m > 1) {
    if (task.m - first < m) return multiply_rest<m - 1>(task, first);
  }
  multiply_rows<m>(task, first);
}

static void multiply_decoded(const DecodedTask& task) {
  for (int64_t first = 0; first < task.m; first += kMostRows) multiply_rest(task, first);
}

// What has been decoded is multiplied while it is in a core's first cache.
static int64_t decoded_rows(int64_t columns) {
  constexpr int64_t kFloats = 6144, kFewest = 4, kMost = 16;
  const int64_t fit = kFloats / (columns + 1) / kFewest * kFewest;
  return fit < kFewest ? kFewest : fit > kMost ? kMost : fit;
}

static constexpr DecodedKernels kDecodedKernels{Dtype::kFloat32, decoded_rows,    takes_decoded,
                                                decoded_x_bytes, prepare_decoded, multiply_decoded};

}  // namespace phiquant::cpu::PHIQUANT_ISA
