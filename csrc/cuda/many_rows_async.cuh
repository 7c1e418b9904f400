// Hopper's asynchronous copies and their barriers in shared memory, for blocks in clusters.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace phiquant::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Asked for once: the compiler would rather ask again in every step.
__device__ __forceinline__ int lane_of_thread() {
  int lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// All threads of the cluster. What they wrote before is seen after; or only barriers that were
// published.
__device__ __forceinline__ void cluster_sync() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}
__device__ __forceinline__ void cluster_sync_published() {
  asm volatile(
      "barrier.cluster.arrive.relaxed.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}

// A phase ends when as many as expected have arrived, and all bytes promised with them.
__device__ __forceinline__ void init_barrier(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// By one lane of a warp, `mine`, as copies below: no branch, so that a warp's registers stay its
// own.
__device__ __forceinline__ void arrive_with_bytes(bool mine, uint32_t barrier, uint32_t bytes) {
  asm volatile(
      "{\n"
      ".reg .pred mine;\n"
      "setp.ne.b32 mine, %2, 0;\n"
      "@mine mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n"
      "}" ::"r"(barrier),
      "r"(bytes), "r"(static_cast<int>(mine))
      : "memory");
}

// At the same barrier of the cluster's block `rank`.
__device__ __forceinline__ void arrive_at(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

// Until the phase of this parity has ended.
__device__ __forceinline__ void wait_for(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
      "@!ended bra again;\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// A box of a matrix, from column and row on, zeros beyond its edges; its bytes are counted at
// `barrier`.
__device__ __forceinline__ void copy_box(bool mine, uint32_t to, const CUtensorMap* map, int column,
                                         int row, uint32_t barrier) {
  asm volatile(
      "{\n"
      ".reg .pred mine;\n"
      "setp.ne.b32 mine, %5, 0;\n"
      "@mine cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3}], [%4];\n"
      "}" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier), "r"(static_cast<int>(mine))
      : "memory");
}

// The same to this place of both blocks of a pair, and their barriers.
__device__ __forceinline__ void copy_box_to_pair(bool mine, uint32_t to, const CUtensorMap* map,
                                                 int column, int row, uint32_t barrier) {
  asm volatile(
      "{\n"
      ".reg .pred mine;\n"
      "setp.ne.b32 mine, %6, 0;\n"
      "@mine cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;\n"
      "}" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(static_cast<uint16_t>(3)),
      "r"(static_cast<int>(mine))
      : "memory");
}

// What this thread has stored can be read by tensor cores once a barrier says so.
__device__ __forceinline__ void show_to_products() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// The 128 threads of a warpgroup.
__device__ __forceinline__ void warpgroup_sync(int warpgroup) {
  asm volatile("bar.sync %0, 128;" ::"r"(warpgroup + 1) : "memory");
}

// Four 8 x 8 matrices of 16 bits, transposed; lane 8 i + r gives the place of row r of matrix i.
__device__ __forceinline__ void store_transposed(uint32_t to, uint32_t a, uint32_t b, uint32_t c,
                                                 uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
               "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

template <int registers>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}

#endif

}  // namespace phiquant::cuda
