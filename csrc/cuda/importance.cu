// Importance of columns, brought to a range of its own in every group: a thread a group.
#include "encode.h"

namespace phiquant::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    spread(Layout layout, const float* given, float* out, Fault* fault) {
  const int64_t group = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (group >= groups_of(layout)) return;
  const int64_t begin = group * layout.group_size;
  const int64_t end = min(begin + layout.group_size, layout.columns);
  float largest = 0;
  for (int64_t i = begin; i < end; i++) {
    if (!(given[i] >= 0 && given[i] <= 0x1.fffffep+127f)) *fault = Fault::kImportance;
    largest = fmaxf(largest, given[i]);
  }
  const int exponent = largest > 0 ? ilogbf(largest) : 0;
  for (int64_t i = begin; i < end; i++) out[i] = ldexpf(given[i], -exponent);
}

}  // namespace

void spread_importance(const Layout& layout, const float* given, float* spread_to, Fault* fault,
                       cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>((groups_of(layout) + kThreads - 1) / kThreads);
  spread<<<blocks, kThreads, 0, stream>>>(layout, given, spread_to, fault);
}

}  // namespace phiquant::cuda
