// Exact bf16 weights by the table of sub-cells' edges; the kernels are in exact_strips.cu.
#pragma once

#include "kernels.h"

namespace phiquant::cuda {

// Whether a table says all about this weight's sub-cells, and finds room on this device.
bool has_edge_table(const Layout& layout, const Planes& planes, const Remainder& remainder,
                    int64_t rows);

// To bf16, of a weight that has one, and of enough rows that the table pays.
bool decodes_strips(const DecodeTask& task);
void decode_strips(const DecodeTask& task, cudaStream_t stream);

// Products with at most 16 rows of bf16.
bool multiplies_strips(const ProductTask& task);

// Products of one x, of weights of one layout.
bool multiplies_strips(const ProductTasks& tasks);
void multiply_strips(const ProductTasks& tasks, cudaStream_t stream);

}  // namespace phiquant::cuda
