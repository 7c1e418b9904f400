// What the CUDA kernels are given. Raw pointers only: the binding has checked every extent. Nothing
// here waits for the device, so contents cannot be refused as on the CPU: what a bad scale word or
// a block outside of the remainder plane stands for decodes to NaN, and nothing is read outside.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "phiquant/layout.h"

namespace phiquant::cuda {

enum class Dtype : int32_t { kFloat32, kBFloat16, kFloat16 };

// Contiguous planes of [rows, columns], aligned as their elements are; a plane that the layout does
// not have is null.
struct Planes {
  const uint8_t* index;
  const uint8_t* deviation;
  const uint8_t* deviation_low;
  const uint16_t* scale;
};

// The remainder plane; payload is null where it is not read. Values are as they were stored.
struct Remainder {
  const uint8_t* payload;
  int64_t size;  // bytes of payload, kPadding included
  const uint16_t* offsets;
  const int64_t* starts;
  bool consecutive;  // 32 blocks a start; else each has its own
  Dtype stored;      // the dtype whose floats are told apart
};

// `count` pairs of places in the flat weight, ascending, and fp32 bits.
struct Exceptions {
  const int64_t* pairs;
  int64_t count;
};

// out[i, columns] = weight[rows ? rows[i] : i] for i below `count`; a row that the weight does not
// have stops the device, as torch's own look-ups do.
struct DecodeTask {
  Layout layout;
  Planes planes;
  Remainder remainder;
  Exceptions exceptions;
  const int64_t* rows;
  int64_t count;
  int64_t stored_rows;
  Dtype dtype;
  void* out;
};

// out[m, out_features] = x[m, columns] . weight[out_features, columns] + bias.
struct ProductTask {
  Layout layout;
  Planes planes;
  Remainder remainder;
  const void* x;     // [m, columns] of dtype, contiguous
  const void* bias;  // [out_features] of dtype, or null
  void* out;         // of dtype
  Dtype dtype;       // bf16 or fp16
  int64_t m;
  int64_t out_features;
};

// Products of one x with weights of one layout: tasks that differ in planes, bias, out and
// out_features alone.
inline constexpr int kMostWeights = 3;

struct ProductTasks {
  ProductTask of[kMostWeights];
  int count;
};

// All launch on `stream` of the current device and return at once.
void decode(const DecodeTask& task, cudaStream_t stream);

// Whether `multiply` takes such a product of a lossy weight, and is the faster way. Up to 8 rows of
// x, on Hopper up to 16 with at most 4 deviation bits.
bool multiplies(const ProductTask& task);
void multiply(const ProductTask& task, cudaStream_t stream);

// The same for products of one x, which one kernel makes.
bool multiplies(const ProductTasks& tasks);
void multiply(const ProductTasks& tasks, cudaStream_t stream);

// The same for more rows of x; `workspace`: few_workspace(task) bytes of the device, aligned to
// 256, until the product is done.
bool multiplies_few(const ProductTask& task);
int64_t few_workspace(const ProductTask& task);
void multiply_few(const ProductTask& task, void* workspace, cudaStream_t stream);

// The same for an exact weight.
bool multiplies_exact(const ProductTask& task);
void multiply_exact(const ProductTask& task, cudaStream_t stream);

// The same for products of one x; false also where they have to be made one after the other.
bool multiplies_exact(const ProductTasks& tasks);
void multiply_exact(const ProductTasks& tasks, cudaStream_t stream);

// The same for more than 32 rows of x and a lossy weight, on a Hopper GPU; false also where
// decoding and torch's product take less time. `workspace`: many_workspace(task) bytes.
bool multiplies_many(const ProductTask& task);
int64_t many_workspace(const ProductTask& task);
void multiply_many(const ProductTask& task, void* workspace, cudaStream_t stream);

}  // namespace phiquant::cuda
