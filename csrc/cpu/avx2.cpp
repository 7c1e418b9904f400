// The kernels for x86 with AVX2, FMA and F16C.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#define PHIQUANT_ISA avx2
#define PHIQUANT_BYTES 32
#include "vector_avx2.h"
//
#include "nibbles_avx2.h"
//
#include "nibble_kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
