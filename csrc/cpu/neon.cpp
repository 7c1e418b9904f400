// The kernels for aarch64, whose processors all have NEON.
#if defined(__aarch64__)

#define PHIQUANT_ISA neon
#define PHIQUANT_BYTES 16
#include "vector_neon.h"
//
#include "nibbles_neon.h"
//
#include "nibble_kernels.h"

#endif
