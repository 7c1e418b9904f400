// Products of 9 to 64 rows of x with a lossy weight whose codes are decoded in registers, for the
// tensor cores; of 33 and more only where many_rows.cu takes none, of up to 16 where sixteen.cu
// does not.
//
// One warp of a block fills a ring of stages in shared memory by bulk copies; the others take 16
// (or 32) rows of the weight each, as mma.m16n8k16 has it: lane 4 q + t has the codes of columns 16
// t .. 16 t + 15 of a group, of 2 rows, and x comes in the same order (few_rows_x.cu). Levels are
// rounded to fp16, their sums over a group multiplied by its scale in fp32.
//
// Instructions a weight at 16 rows: 2.6 to make the level of an index (3.5 with 4 deviation bits),
// 1/4 for mma, 1/4 to apply scales; with scales, shared memory and the ring 4.5 (5.4);
// executed 5.8, as units are short. At 2.4 TB/s an H100 has 7 (14). Every 8 rows more take 1/4, and
// 1/8 for x.
#include <stdexcept>
#include <string>

#include "few_rows_fill.cuh"
#include "few_rows_maps.h"
#include "few_rows_multiply.cuh"

namespace phiquant::cuda {
namespace {

constexpr int kMostFewRows = 64;  // beyond, decoding is as fast

template <int deviation, int eights>
__global__ void __launch_bounds__(FewShape<deviation, eights>::kThreads, 1)
    few_rows(const __grid_constant__ FewPlan plan, const __grid_constant__ CUtensorMap index,
             const __grid_constant__ CUtensorMap high) {
#if __CUDA_ARCH__ >= 900
  using Shape = FewShape<deviation, eights>;
  extern __shared__ uint8_t room[];
  __shared__ FewShared<Shape::kStages, Shape::kWarps, Shape::kTall> shared;
  uint8_t* const ring = room + (-shared_address(room) & 1023);  // as the copies' pattern wants it
  const int thread = static_cast<int>(threadIdx.x), block = static_cast<int>(blockIdx.x);
  const int first = first_unit(plan, block), last = first_unit(plan, block + 1);
  const bool copies = thread >= Shape::kWarps * 32, fills = thread == Shape::kWarps * 32;
  const Filler<deviation, Shape> filler{plan, index, high, ring, first, last};
  Multiplier<deviation, eights> multiplier(plan, shared);
  if (fills) filler.begin(shared.full, shared.empty);
  if (thread < kBendCount) {
    FittedBend bend = fitted_bend_of(thread);
    bend.back *= power_of_two(plan.task.layout.exponent);
    shared.bends[thread] = bend;
  }
  if (!copies) multiplier.begin(first);
  __syncthreads();
  if (fills) filler.run(shared.full, shared.empty);
  if (!copies) multiplier.run(first, last, shared_address(ring));
#endif
}

int few_eights(int64_t m) { return m <= 16 ? 2 : m <= 32 ? 4 : 8; }

int64_t rounded_up(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// Bytes of the parts of a workspace, and how work is cut.
struct FewRoom {
  int64_t x, back, partial, arrived;

  FewRoom(const FewPlan& plan, int eights)
      : x(int64_t{plan.stages} * kUnitGroups * eights * kFragment),
        back(rounded_up(eights * 8 * 4)),
        partial(int64_t{plan.blocks} * 2 * eights * 8 * kUnitRows * 4),
        arrived(int64_t{plan.tiles} * kCounters * 4) {}
};

FewPlan few_plan(const ProductTask& task) {
  FewPlan plan{};
  plan.task = task;
  plan.groups = static_cast<int>(groups_of(task.layout));
  plan.stages = (plan.groups + kUnitGroups - 1) / kUnitGroups;
  plan.tiles = static_cast<int>((task.out_features + kUnitRows - 1) / kUnitRows);
  const int64_t units = int64_t{plan.stages} * plan.tiles;
  const int most = attribute(cudaDevAttrMultiProcessorCount);
  plan.blocks = static_cast<int>(units < most ? units : most);
  plan.share = static_cast<int>(units / plan.blocks);
  plan.longer = static_cast<int>(units % plan.blocks);
  plan.paired = plan.groups % (2 * kUnitGroups) == 0 &&
                (reinterpret_cast<uintptr_t>(task.planes.scale) & 7) == 0;
  return plan;
}

template <int deviation, int eights>
void launch_few(const FewPlan& plan, cudaStream_t stream) {
  using Shape = FewShape<deviation, eights>;
  CUtensorMap index{}, high{};
  const Planes& planes = plan.task.planes;
  if (!encode_map(planes.index, 4, plan, &index) ||
      (deviation > 0 && !encode_map(planes.deviation, deviation, plan, &high))) {
    throw std::runtime_error("phiquant: the CUDA driver refused to describe a plane of " +
                             std::to_string(plan.task.out_features) + " rows and " +
                             std::to_string(plan.task.layout.columns) +
                             " columns; it takes any that are aligned to 16 bytes");
  }
  prepare_few(plan, Shape::kRows, stream);
  const auto kernel = few_rows<deviation, eights>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kBytes);
  launch_overlapping(kernel, static_cast<unsigned>(plan.blocks), Shape::kThreads, Shape::kBytes,
                     stream, plan, index, high);
}

template <int eights>
void launch_few(const FewPlan& plan, cudaStream_t stream) {
  switch (plan.task.layout.deviation_bits) {
    case 0:
      return launch_few<0, eights>(plan, stream);
    case 2:
      return launch_few<2, eights>(plan, stream);
    default:
      return launch_few<4, eights>(plan, stream);
  }
}

}  // namespace

bool multiplies_few(const ProductTask& task) {
  const Layout& layout = task.layout;
  const auto at = [](const void* plane) { return reinterpret_cast<uintptr_t>(plane); };
  return layout.index_bits == 4 && layout.grid == GridName::kPhi && layout.group_size == 64 &&
         layout.deviation_bits <= 4 && task.remainder.payload == nullptr &&
         ((at(task.planes.index) | at(task.planes.deviation)) & 15) == 0 &&
         task.dtype != Dtype::kFloat32 && task.m <= kMostFewRows &&
         layout.columns < (int64_t{1} << 24) && task.out_features < (int64_t{1} << 24) &&
         attribute(cudaDevAttrComputeCapabilityMajor) >= 9 && tensor_map_encoder() != nullptr;
}

int64_t few_workspace(const ProductTask& task) {
  const FewPlan plan = few_plan(task);
  const FewRoom room(plan, few_eights(task.m));
  return room.x + room.back + room.partial + room.arrived;
}

void multiply_few(const ProductTask& task, void* workspace, cudaStream_t stream) {
  FewPlan plan = few_plan(task);
  const int eights = few_eights(task.m);
  const FewRoom room(plan, eights);
  auto* const bytes = static_cast<uint8_t*>(workspace);
  plan.x = reinterpret_cast<uint4*>(bytes);
  plan.back = reinterpret_cast<float*>(bytes + room.x);
  plan.partial = reinterpret_cast<float4*>(bytes + room.x + room.back);
  plan.arrived = reinterpret_cast<unsigned*>(bytes + room.x + room.back + room.partial);
  if (eights == 2) return launch_few<2>(plan, stream);
  if (eights == 4) return launch_few<4>(plan, stream);
  launch_few<8>(plan, stream);
}

}  // namespace phiquant::cuda
