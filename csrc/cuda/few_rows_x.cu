// Rows of x to what the tensor cores take, once for all blocks of a product: fp16, in the order of
// the weights' pairs. A block takes a row. bf16 rows are multiplied by a power of two that puts the
// largest number just below 2^15: whatever is not 2^-32 of that or smaller keeps all its bits.
#include "few_rows.cuh"
#include "fragments.cuh"

namespace phiquant::cuda {
namespace {

constexpr int kThreads = 256;

// 16 columns of a row.
struct Sixteen {
  Octet low, high;

  __device__ __forceinline__ Sixteen(const ProductTask& task, int m, int part) {
    const int64_t column = int64_t{part} * kPart;
    const int64_t count = m < task.m ? task.layout.columns - column : 0;
    const uint16_t* from = static_cast<const uint16_t*>(task.x) + m * task.layout.columns + column;
    low = load_octet(from, count);
    high = load_octet(from + 8, count - 8);
  }
  __device__ __forceinline__ uint32_t largest() const {
    return max(largest_of(low), largest_of(high));
  }
};

// By all threads of the block.
__device__ __forceinline__ uint32_t block_largest(uint32_t mine) {
  __shared__ uint32_t of_warps[kThreads / 32];
  mine = __reduce_max_sync(~0u, mine);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = mine;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kThreads / 32; i++) mine = max(mine, of_warps[i]);
  return mine;
}

template <bool brain>
__global__ void __launch_bounds__(kThreads, 8) few_rows_x(FewPlan plan) {
#if __CUDA_ARCH__ >= 900
  wait_for_earlier_kernels();
  admit_next_kernel();  // what wrote the planes has ended, too
  const int m = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int parts = plan.stages * kUnitGroups * 4;  // of a row
  if (m == 0) {
    for (int i = thread; i < plan.tiles * kCounters; i += kThreads) plan.arrived[i] = 0;
  }
  const Sixteen mine(plan.task, m, thread);  // most rows are read once
  Shift shift{1, 1};
  if constexpr (brain) {
    uint32_t largest = mine.largest();
    for (int part = thread + kThreads; part < parts; part += kThreads) {
      largest = max(largest, Sixteen(plan.task, m, part).largest());
    }
    shift = shift_of(block_largest(largest));
  }
  if (thread == 0) plan.back[m] = shift.back;
  const int eights = static_cast<int>(gridDim.x) / 8;
  for (int part = thread; part < parts; part += kThreads) {
    Sixteen columns = part == thread ? mine : Sixteen(plan.task, m, part);
    if constexpr (brain) {
      to_halves(shift.there, &columns.low);
      to_halves(shift.there, &columns.high);
    }
    uint4* to = plan.x + ((part / 4) * eights + m / 8) * (kFragment / 16) + m % 8 * 4 + part % 4;
    to[0] = *reinterpret_cast<const uint4*>(&columns.low);
    to[32] = *reinterpret_cast<const uint4*>(&columns.high);
  }
#endif
}

}  // namespace

void prepare_few(const FewPlan& plan, int rows, cudaStream_t stream) {
  const auto kernel = plan.task.dtype == Dtype::kBFloat16 ? few_rows_x<true> : few_rows_x<false>;
  // As the product has it: else neither could begin on a multiprocessor before the other has ended.
  cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                       cudaSharedmemCarveoutMaxShared);
  launch_overlapping(kernel, static_cast<unsigned>(rows), kThreads, 0, stream, plan);
}

}  // namespace phiquant::cuda
