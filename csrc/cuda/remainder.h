// What encoding the remainder plane on a GPU is given; its kernels are in remainder.cu.
#pragma once

#include "kernels.h"

namespace phiquant::cuda {

// What sizes follow from, in device memory. Zero before `measure`.
struct Measured {
  int64_t bytes;     // of the payload, without its padding
  int64_t astray;    // weights that are no sub-cell's
  int64_t bad_word;  // not 0 if a scale word is none
};

// weight[rows, columns] and its lossy planes. Blocks are counted through all rows; 32 of them are a
// stretch, which has a start.
struct RemainderTask {
  Layout layout;
  Planes planes;
  Dtype stored;
  const void* weight;  // contiguous, of `stored`
  int64_t rows;        // at least 1
  uint16_t* offsets;   // [blocks]
  int64_t* starts;     // [stretches]
  // Of the passes alone.
  uint16_t* astray;          // [blocks]
  int64_t* first_exception;  // [stretches]
  Measured* measured;
  // Of the second pass, where `measured` is known.
  uint8_t* payload;
  int64_t* exceptions;  // pairs of places and fp32 bits
};

inline int64_t stretches_of(int64_t blocks) {
  return (blocks + kBlocksPerStart - 1) / kBlocksPerStart;
}

// Both launch on `stream` of the current device and return at once. The first fills all but
// payload and exceptions, the second those.
void measure_remainders(const RemainderTask& task, cudaStream_t stream);
void write_remainders(const RemainderTask& task, cudaStream_t stream);

}  // namespace phiquant::cuda
