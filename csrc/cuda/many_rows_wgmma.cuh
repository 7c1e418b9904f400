// Hopper's products of a warpgroup: 64 rows in registers times `wide` rows in shared memory, 16
// columns of both, added to sums in registers. Of warp w lane 4 r + t holds rows 16 w + r and, in
// odd ones of its 4 registers, 16 w + r + 8; columns 2 t and 2 t + 1 and, in the last two, those 8
// on. Sums lie as those of mma.m16n8, 8 columns after the other.
//
// The tensor cores read a register after its instruction was issued, which the compiler does not
// know: whoever changes one first waits for the products and makes a use of it visible (`kept`).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace phiquant::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Rows of 128 bytes in shared memory, swizzled so by the copy, 8 of them 1024 bytes; 16 columns are
// 32 bytes on: 2 in a descriptor.
__device__ __forceinline__ uint64_t describe_rows(uint32_t address) {
  return (uint64_t{1} << 62) | (uint64_t{1024 >> 4} << 32) | (uint64_t{1} << 16) |
         ((address & 0x3FFFF) >> 4);
}
inline constexpr int kDescribedStep = 2;

__device__ __forceinline__ void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

// `next`, made of a register that tensor cores have read too, so that nothing else was in it;
// `none` is 0, which the compiler must not know.
__device__ __forceinline__ uint32_t kept(uint32_t held, uint32_t next, uint32_t none) {
  asm volatile("lop3.b32 %0, %0, %1, %2, 0xEA;" : "+r"(held) : "r"(none), "r"(next));
  return held;
}

// `add`: 0 to overwrite the sums.
template <class T, int wide>
struct WideProduct;

#define PHIQUANT_NAMES_32                                                  \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define PHIQUANT_NAMES_64                                                            \
  PHIQUANT_NAMES_32                                                                  \
  ", "                                                                               \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define PHIQUANT_NAMES_96                                                            \
  PHIQUANT_NAMES_64                                                                  \
  ", "                                                                               \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define PHIQUANT_NAMES_128                                                                     \
  PHIQUANT_NAMES_96                                                                            \
  ", "                                                                                         \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "     \
  "%111, "                                                                                     \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, " \
  "%127"
#define PHIQUANT_8_SUMS(i)                                                                       \
  "+f"(sums[i + 0]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]), "+f"(sums[i + 4]), \
      "+f"(sums[i + 5]), "+f"(sums[i + 6]), "+f"(sums[i + 7])
#define PHIQUANT_32_SUMS(i) \
  PHIQUANT_8_SUMS(i), PHIQUANT_8_SUMS(i + 8), PHIQUANT_8_SUMS(i + 16), PHIQUANT_8_SUMS(i + 24)
#define PHIQUANT_SUMS_32 PHIQUANT_32_SUMS(0)
#define PHIQUANT_SUMS_64 PHIQUANT_32_SUMS(0), PHIQUANT_32_SUMS(32)
#define PHIQUANT_SUMS_96 PHIQUANT_SUMS_64, PHIQUANT_32_SUMS(64)
#define PHIQUANT_SUMS_128 PHIQUANT_SUMS_96, PHIQUANT_32_SUMS(96)

// `count` sums; then %count .. %count + 3 are the weights, and the descriptor and `add` follow.
#define PHIQUANT_WIDE_PRODUCT(T, type, wide, count, a, b, adds)                               \
  template <>                                                                                 \
  struct WideProduct<T, wide> {                                                               \
    static __device__ __forceinline__ void add(float (&sums)[count], const uint32_t (&of)[4], \
                                               uint64_t rows, int add) {                      \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " adds                                   \
                   ", 0;\n"                                                                   \
                   "wgmma.mma_async.sync.aligned.m64n" #wide "k16.f32." type "." type         \
                   " {" PHIQUANT_NAMES_##count "}, {" a "}, " b ", p, 1, 1, 0;\n}"            \
                   : PHIQUANT_SUMS_##count                                                    \
                   : "r"(of[0]), "r"(of[1]), "r"(of[2]), "r"(of[3]), "l"(rows), "r"(add));    \
    }                                                                                         \
  };
#define PHIQUANT_WIDE_PRODUCTS(T, type)                                         \
  PHIQUANT_WIDE_PRODUCT(T, type, 64, 32, "%32, %33, %34, %35", "%36", "%37")    \
  PHIQUANT_WIDE_PRODUCT(T, type, 128, 64, "%64, %65, %66, %67", "%68", "%69")   \
  PHIQUANT_WIDE_PRODUCT(T, type, 192, 96, "%96, %97, %98, %99", "%100", "%101") \
  PHIQUANT_WIDE_PRODUCT(T, type, 256, 128, "%128, %129, %130, %131", "%132", "%133")

PHIQUANT_WIDE_PRODUCTS(__nv_bfloat16, "bf16")
PHIQUANT_WIDE_PRODUCTS(__half, "f16")

#endif

}  // namespace phiquant::cuda
