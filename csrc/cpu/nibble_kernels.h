// The kernels of an instruction set that has the hooks of nibbles.h.
#pragma once

#include "decode_nibbles.h"
#include "fused_nibbles.h"
#define PHIQUANT_DECODE decode_nibbles
#define PHIQUANT_PREPARE prepare_chunks
#define PHIQUANT_FUSED fused_nibbles
#define PHIQUANT_FUSED_ROWS fused_rows
//
#include "kernel_set.h"
