// torch.ops.phiquant on the CPU. Schemas are in phiquant/ops.py.
#include <torch/csrc/stable/library.h>

#include "binding/cpu_about.h"
#include "binding/cpu_decode.h"
#include "binding/cpu_encode.h"
#include "binding/cpu_linear.h"
#include "binding/cpu_linears.h"
#include "binding/cpu_packed.h"
#include "binding/cpu_prepared.h"
#include "binding/cpu_remainder.h"

STABLE_TORCH_LIBRARY_IMPL(phiquant, CPU, m) {
  m.impl("encode", TORCH_BOX(&phiquant::cpu::encode));
  m.impl("encode_remainder", TORCH_BOX(&phiquant::cpu::encode_remainder));
  m.impl("decode", TORCH_BOX(&phiquant::cpu::decode));
  m.impl("linear", TORCH_BOX(&phiquant::cpu::linear<false>));
  m.impl("linear_int8", TORCH_BOX(&phiquant::cpu::linear<true>));
  m.impl("_linear", TORCH_BOX(&phiquant::cpu::packed_linear));
  m.impl("_linears", TORCH_BOX(&phiquant::cpu::linears));
  m.impl("_prepare", TORCH_BOX(&phiquant::cpu::prepare));
  m.impl("_prepared_linear", TORCH_BOX(&phiquant::cpu::prepared_linear));
  m.impl("embedding", TORCH_BOX(&phiquant::cpu::embedding));
}

// Takes no tensor whose device would tell where it runs.
STABLE_TORCH_LIBRARY_IMPL(phiquant, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&phiquant::cpu::isa));
}
