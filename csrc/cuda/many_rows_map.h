// Maps of matrices for Hopper's copies of boxes to shared memory.
#pragma once

#include <cuda.h>

#include "kernels.h"

namespace phiquant::cuda {

// A matrix of `rows` rows of `columns` elements of 1 or 2 bytes, rows `stride` bytes apart.
struct Matrix {
  const void* data;
  int64_t rows, columns;
  int64_t stride;
  int element;
};

// Whether the driver knows such copies, and such a matrix can be copied so.
bool can_map(const Matrix& matrix);

// A map for boxes of box_rows rows of box_columns elements, which are 16, 32, 64 or 128 bytes:
// halves of rows of 32, quarters of rows of 64, and eighths of rows of 128, are swapped in shared
// memory against conflicts of banks.
CUtensorMap map_boxes(const Matrix& matrix, int box_rows, int box_columns);

// The same of 3 dimensions, for boxes of box_rows rows of `box_groups` groups of columns each, in
// shared memory group after group. Where columns do not come in whole groups: of one group, from
// any column.
CUtensorMap map_groups(const Matrix& matrix, int box_rows, int group, int box_groups);

}  // namespace phiquant::cuda
