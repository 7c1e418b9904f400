// torch.ops.phiquant on NVIDIA GPUs. Schemas are in phiquant/ops.py.
#include <torch/csrc/stable/library.h>

#include "binding/cuda_decode.h"
#include "binding/cuda_encode.h"
#include "binding/cuda_grouped.h"
#include "binding/cuda_linears.h"
#include "binding/cuda_remainder.h"

STABLE_TORCH_LIBRARY_IMPL(phiquant, CUDA, m) {
  m.impl("encode", TORCH_BOX(&phiquant::cuda::encode_weight));
  m.impl("encode_remainder", TORCH_BOX(&phiquant::cuda::encode_remainder));
  m.impl("decode", TORCH_BOX(&phiquant::cuda::decode_planes));
  m.impl("linear", TORCH_BOX(&phiquant::cuda::linear));
  m.impl("linear_int8", TORCH_BOX(&phiquant::cuda::linear));
  m.impl("_linear", TORCH_BOX(&phiquant::cuda::packed_linear));
  m.impl("_linears", TORCH_BOX(&phiquant::cuda::packed_linears));
  m.impl("_grouped_few", TORCH_BOX(&phiquant::cuda::grouped_few));
  m.impl("embedding", TORCH_BOX(&phiquant::cuda::embedding));
}
