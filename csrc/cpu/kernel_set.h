// The kernels of the instruction set whose hooks were included before, under one name.
#pragma once

#include "decode.h"
#include "encode.h"
#include "fused.h"

#define PHIQUANT_TEXT_OF(name) #name
#define PHIQUANT_TEXT(name) PHIQUANT_TEXT_OF(name)

namespace phiquant::cpu::PHIQUANT_ISA {

const Kernels& kernels() {
  static constexpr Kernels set{PHIQUANT_TEXT(PHIQUANT_ISA), decode, encode, prepare, fused};
  return set;
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
