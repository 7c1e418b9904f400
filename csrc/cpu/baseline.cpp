// The kernels for any target, in 16-byte vectors.
#define PHIQUANT_ISA baseline
#define PHIQUANT_BYTES 16
#include "vector_baseline.h"
//
#include "nibbles_baseline.h"
//
#include "nibble_kernels.h"
