// Hopper's products of a warpgroup: 64 rows of the weight times `wide` rows of x, both in shared
// memory, 16 columns of each, added to sums in registers. Lane 4 r + t of warp w has sums of the
// weight's rows 16 w + r and 16 w + r + 8, as those of mma.m16n8, 8 rows of x after the other.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace phiquant::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Rows of 128 bytes in shared memory, their eighths swapped as copies do, 8 rows 1024 bytes; 16
// columns are 32 bytes on: 2 in a descriptor.
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
// Until no more than `running` of the groups committed so far are.
template <int running>
__device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(running) : "memory");
}

// The compiler does not know that sums change until products are waited for.
template <int count>
__device__ __forceinline__ void settle(float (&sums)[count]) {
#pragma unroll
  for (int i = 0; i < count; i++) asm volatile("" : "+f"(sums[i])::"memory");
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

// `count` sums; then descriptors of the weight's rows and x's, and `add`.
#define PHIQUANT_WIDE_PRODUCT(T, type, wide, count, weight, x, adds)                             \
  template <>                                                                                    \
  struct WideProduct<T, wide> {                                                                  \
    static __device__ __forceinline__ void add(float (&sums)[count], uint64_t of, uint64_t rows, \
                                               int add) {                                        \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " adds                                      \
                   ", 0;\n"                                                                      \
                   "wgmma.mma_async.sync.aligned.m64n" #wide "k16.f32." type "." type            \
                   " {" PHIQUANT_NAMES_##count "}, " weight ", " x ", p, 1, 1, 0, 0;\n}"         \
                   : PHIQUANT_SUMS_##count                                                       \
                   : "l"(of), "l"(rows), "r"(add));                                              \
    }                                                                                            \
  };
#define PHIQUANT_WIDE_PRODUCTS(T, type)                        \
  PHIQUANT_WIDE_PRODUCT(T, type, 64, 32, "%32", "%33", "%34")  \
  PHIQUANT_WIDE_PRODUCT(T, type, 128, 64, "%64", "%65", "%66") \
  PHIQUANT_WIDE_PRODUCT(T, type, 192, 96, "%96", "%97", "%98") \
  PHIQUANT_WIDE_PRODUCT(T, type, 256, 128, "%128", "%129", "%130")

PHIQUANT_WIDE_PRODUCTS(__nv_bfloat16, "bf16")
PHIQUANT_WIDE_PRODUCTS(__half, "f16")

#endif

}  // namespace phiquant::cuda
