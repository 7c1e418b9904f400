// The kernels for aarch64, whose processors all have NEON.
#if defined(__aarch64__)

#define PHIQUANT_ISA neon
#define PHIQUANT_BYTES 16
#include "vector_neon.h"
//
#include "kernel_set.h"

#endif
