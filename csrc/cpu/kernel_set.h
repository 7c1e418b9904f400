// The kernels of the instruction set whose hooks were included before, under one name.
#pragma once

// An instruction set may have a faster one of its own.
#if !defined(PHIQUANT_DECODE)
#define PHIQUANT_DECODE decode_lossy
#endif
#if !defined(PHIQUANT_TAKE_BITS)
#define PHIQUANT_TAKE_BITS take_bits
#endif
#if !defined(PHIQUANT_DECODE_ANY)
#define PHIQUANT_DECODE_ANY decode
#endif
#if !defined(PHIQUANT_MEASURE)
#define PHIQUANT_MEASURE measure
#define PHIQUANT_WRITE write
#endif
#if !defined(PHIQUANT_PREPARE)
#define PHIQUANT_PREPARE prepare
#endif
#if !defined(PHIQUANT_FUSED)
#define PHIQUANT_FUSED fused
#define PHIQUANT_FUSED_ROWS fused_rows
#endif
#if !defined(PHIQUANT_INTEGERS)
#define PHIQUANT_INTEGERS nullptr
#endif
//
#include "decoded.h"
#include "encode.h"
#include "exact_decode.h"
#include "exact_encode.h"
#include "fused.h"

#define PHIQUANT_TEXT_OF(name) #name
#define PHIQUANT_TEXT(name) PHIQUANT_TEXT_OF(name)

namespace phiquant::cpu::PHIQUANT_ISA {

const Kernels& kernels() {
  static constexpr Kernels set{PHIQUANT_TEXT(PHIQUANT_ISA),
                               PHIQUANT_DECODE_ANY,
                               encode,
                               PHIQUANT_MEASURE,
                               PHIQUANT_WRITE,
                               PHIQUANT_PREPARE,
                               PHIQUANT_FUSED,
                               PHIQUANT_FUSED_ROWS,
                               &kDecodedKernels,
                               PHIQUANT_INTEGERS,
                               nullptr,
                               nullptr};
  return set;
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
