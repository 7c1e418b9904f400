// The kernels for x86 with AMX: those of AVX-512, and products on the matrix unit.
#include "matrix_unit.h"

#if defined(PHIQUANT_HAS_AMX)
#if defined(__clang__)
#pragma clang attribute push(                                                                     \
    __attribute__((target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx2,fma,f16c," \
                          "avx512vnni,amx-tile,amx-bf16,amx-int8"))),                             \
    apply_to = function)
#else
#pragma GCC target( \
    "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx2,fma,f16c,avx512vnni,amx-tile,amx-bf16,amx-int8")
#endif

// GCC 12 takes its own _mm512_undefined_* for a mistake.
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#define PHIQUANT_ISA amx
#define PHIQUANT_BYTES 64
#include "vector_avx512.h"
//
#include "amx_kernels.h"

namespace phiquant::cpu::avx512 {
const Kernels& kernels();
}

namespace phiquant::cpu::amx {

const Kernels& kernels() {
  static const Kernels set = [] {
    Kernels with_tiles = avx512::kernels();
    with_tiles.name = "amx";
    with_tiles.decoded_tiles = &kDecodedKernels;
    with_tiles.tiles = &kTileKernels;
    return with_tiles;
  }();
  return set;
}

}  // namespace phiquant::cpu::amx

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
