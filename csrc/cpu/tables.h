// Tables that kernels read: the golden grid's levels and edges, and the inverse of the phi-grid.
#pragma once

#include <vector>

#include "kernels.h"

namespace phiquant::cpu {

// The level of every code on the golden grid when `bits` deviation bits are read, 2^(index_bits +
// bits) values; as cells.levels of the reference. Computed once a process.
const std::vector<float>& golden_levels(int index_bits, int bits);

// The lower edge of every code on the golden grid, and the last one's upper edge.
const std::vector<float>& golden_edges(const Layout& layout);

// 2^(i / 32) for i below 32.
const double* thirty_second_powers();

// What the first pass over candidates reads, one a bend; null where it is not worth it (scan.h).
// Computed once a process and layout. `shared`: the scales of both signs use one segment's cubic.
const ScanTable* scan_tables(const Layout& layout, bool shared);

// What encoding needs besides the weight.
struct SearchTables {
  std::vector<Inverse> inverse;
  const ScanTable* scan = nullptr;
  std::vector<float> ends;
  const float* edges = nullptr;
  const float* levels = nullptr;
  const float* index_levels = nullptr;

  SearchTables(const Layout& layout, bool priced);
};

}  // namespace phiquant::cpu
