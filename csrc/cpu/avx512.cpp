// The kernels for x86 with AVX-512 F, BW, CD, DQ, VL, VBMI and VNNI.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(                                                                     \
    __attribute__((target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx2,fma,f16c," \
                          "avx512vnni"))),                                                        \
    apply_to = function)
#else
#pragma GCC target( \
    "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx2,fma,f16c,avx512vnni")
#endif

// GCC 12 takes its own _mm512_undefined_* for a mistake.
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#define PHIQUANT_ISA avx512
#define PHIQUANT_BYTES 64
#define PHIQUANT_SCAN_HALVES
#include "vector_avx512.h"
//
#include "decode_avx512.h"
#include "fused_avx512.h"
#include "integer_kernels.h"
#include "take_bits_avx512.h"
#define PHIQUANT_DECODE fast_decode
#define PHIQUANT_TAKE_BITS fast_take_bits
#define PHIQUANT_PREPARE fast_prepare
#define PHIQUANT_DECODE_ANY fast_decode_any
#define PHIQUANT_MEASURE fast_measure
#define PHIQUANT_WRITE fast_write
#define PHIQUANT_FUSED fast_fused
#define PHIQUANT_FUSED_ROWS fast_fused_rows
#define PHIQUANT_INTEGERS &kIntegerKernels
//
#include "exact_encode_avx512.h"
#include "pack_codes_avx512.h"
#include "scan_halves_avx512.h"
#define PHIQUANT_PACK_CODES
#define PHIQUANT_TABLE_BITS
//
#include "kernel_set.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
