// Products of 9 to 128 rows of x with a lossy weight whose codes are decoded in registers, for the
// tensor cores: 64 rows at a time.
//
// One warp of a block fills a ring of stages in shared memory by bulk copies; the others take 16
// (or 32) rows of the weight each, as mma.m16n8k16 has it: lane 4 q + t has the codes of columns 16
// t .. 16 t + 15 of a group, of 2 rows, and x comes in the same order (few_rows_x.cu). Levels are
// rounded to fp16, their sums over a group multiplied by its scale in fp32.
//
// Instructions a weight at 16 rows: 2.6 to make the level of an index (3.5 with 4 deviation bits),
// 1/4 for mma, 1/4 to apply scales, 1/2 to read scales, 1/3 for shared memory and the ring: 4 (5).
// At 2.8 TB/s an H100 has 6.2 (12). Every 8 rows more take 1/4, and 1/16 for x.
#include "few_rows_levels.cuh"
#include "few_rows_maps.h"
#include "few_rows_ring.cuh"
#include "few_rows_sums.cuh"

namespace phiquant::cuda {
namespace {

constexpr int kRowsAtOnce = 64;
constexpr int kMostFewRows = 128;

// One row and group, as a lane needs it.
struct Coefficients {
  uint32_t bend;  // a and b of its levels
  float scale;    // NaN if the scale word is none
};

template <int stages, int warps, int tall>
struct FewShared {
  Barrier full[stages], empty[stages];
  FittedBend bends[kBendCount];
  Coefficients coefficients[warps][kUnitGroups][16 * tall];
};

template <int at>
__device__ __forceinline__ uint4 quad_at(uint32_t address) {
  uint4 words;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4 + %5];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "r"(address), "n"(at));
  return words;
}

__device__ __forceinline__ void multiply_add(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The warp that fills the ring with a block's units, [first, last).
template <int deviation, class Shape>
struct Filler {
  const FewPlan& plan;
  const CUtensorMap &index, &high;
  uint8_t* ring;
  int lane;
  bool aligned;  // the two scale words of a row, to their 4 bytes

  __device__ __forceinline__ Filler(const FewPlan& plan, const CUtensorMap& index,
                                    const CUtensorMap& high, uint8_t* ring)
      : plan(plan),
        index(index),
        high(high),
        ring(ring),
        lane(static_cast<int>(threadIdx.x) & 31),
        aligned(plan.groups % kUnitGroups == 0 &&
                (reinterpret_cast<uintptr_t>(plan.task.planes.scale) & 3) == 0) {}

  __device__ __forceinline__ void copy_scales(int tile, int along, uint8_t* to,
                                              Barrier& full) const {
    const int64_t rows = plan.task.out_features;
#pragma unroll
    for (int i = 0; i < kTileRows / 32; i++) {
      const int at = i * 32 + lane, group = along * kUnitGroups;
      const int64_t row = min(int64_t{tile} * kTileRows + at, rows - 1);
      const uint16_t* const from = plan.task.planes.scale + row * plan.groups + group;
      auto* const words = reinterpret_cast<uint16_t*>(to) + at * kUnitGroups;
      if (aligned) {
        copy_four(from, words);
      } else {
#pragma unroll
        for (int j = 0; j < kUnitGroups; j++) {
          words[j] = group + j < plan.groups ? __ldg(from + j) : uint16_t{0};
        }
      }
    }
    aligned ? full.arrive_after_copies() : full.arrive();
  }
  __device__ __forceinline__ void copy_weights(int unit, int stage, Barrier& full) const {
    uint8_t* const to = ring + stage * Shape::kStageBytes;
    const int tile = unit / plan.stages, along = unit - tile * plan.stages;
    if (lane == 0) {
      full.expect(Shape::kStageBytes - Shape::kScaleBytes);
      copy_box(index, along * (kUnitGroups * 32), tile * kTileRows, to, full);
      if constexpr (deviation > 0) {
        copy_box(high, along * (kUnitGroups * 8 * deviation), tile * kTileRows,
                 to + Shape::kIndexBytes, full);
      }
    }
    copy_scales(tile, along, to + Shape::kStageBytes - Shape::kScaleBytes, full);
  }
  __device__ __forceinline__ void copy_x(int unit, int stage, Barrier& full) const {
    if (lane > 0) return;
    copy_bytes(plan.x + unit % plan.stages * (Shape::kXBytes / 16), Shape::kXBytes,
               ring + stage * Shape::kStageBytes + Shape::kIndexBytes + Shape::kHighBytes, full);
  }

  // Weights are there before x is.
  __device__ __forceinline__ void run(int first, int last, Barrier* full, Barrier* empty) const {
    const int ahead = min(Shape::kStages, last - first);
    for (int i = 0; i < ahead; i++) copy_weights(first + i, i, full[i]);
    wait_for_earlier_kernels();
    asm volatile("fence.proxy.async.global;" ::: "memory");
    for (int i = 0; i < ahead; i++) copy_x(first + i, i, full[i]);
    Turn<Shape::kStages> turn;
    for (int unit = first + ahead; unit < last; unit++, turn.advance()) {
      empty[turn.stage].wait(turn.parity);
      copy_weights(unit, turn.stage, full[turn.stage]);
      copy_x(unit, turn.stage, full[turn.stage]);
    }
  }
};

// One of the warps that multiply.
template <int deviation, int eights>
struct Multiplier {
  using Shape = FewShape<deviation, eights>;
  using Shared = FewShared<Shape::kStages, Shape::kWarps, Shape::kTall>;

  static constexpr int kTall = Shape::kTall;

  const FewPlan& plan;
  Shared& shared;
  float unit;
  int lane, warp, row, above;
  TileSums<eights> sums[kTall];

  // Lanes of half a warp have rows 0, 1, 4 and 5 of 8, so that they meet each bank once.
  __device__ __forceinline__ Multiplier(const FewPlan& plan, Shared& shared)
      : plan(plan),
        shared(shared),
        unit(power_of_two(plan.task.layout.exponent)),
        lane(static_cast<int>(threadIdx.x) & 31),
        warp(static_cast<int>(threadIdx.x) / 32),
        row((lane >> 2 & 1) + (lane >> 3 & 1) * 4 + (lane >> 4) * 2),
        above(warp * 16 * kTall),
        sums{} {}

  // What scales the warp's rows in the groups of a unit; nothing where a row has no such group.
  __device__ __forceinline__ void read_scales(const uint8_t* stage, int along) {
    const auto* const words =
        reinterpret_cast<const uint16_t*>(stage + Shape::kStageBytes - Shape::kScaleBytes);
#pragma unroll
    for (int i = 0; i < kTall; i++) {
      const int at = i * 32 + lane, group = at / (16 * kTall), of = at % (16 * kTall);
      const Scale scale =
          scale_of(plan.task.layout, words[(above + of) * kUnitGroups + group], unit);
      const FittedBend bend = shared.bends[scale.bend];
      const bool there = along * kUnitGroups + group < plan.groups;
      shared.coefficients[warp][group][of] = {bend.halves, there ? scale.value * bend.back : 0.0f};
    }
  }

  // One group of rows `row` and `row + 8` of a tile: 16 columns of each.
  __device__ __forceinline__ void decode(const uint8_t* codes, int group, int tile,
                                         const Coefficients (&of)[2], uint32_t (&a)[4][4]) const {
    const int part = lane & 3, begin = above + tile * 16 + row;
    const uint8_t* const index =
        codes + begin * 64 + ((2 * group + part / 2) ^ (row >> 1)) * 16 + part % 2 * 8;
    const uint8_t* const high = deviation == 2 ? codes + Shape::kIndexBytes + begin * 32 +
                                                     (group ^ (row >> 2)) * 16 + part * 4
                                               : index + Shape::kIndexBytes;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const uint2 low = *reinterpret_cast<const uint2*>(index + r * 8 * 64);
      uint2 more{};
      if constexpr (deviation == 2) {
        more.x = *reinterpret_cast<const uint32_t*>(high + r * 8 * Shape::kHighRow);
        more.y = more.x >> 16;
      }
      if constexpr (deviation == 4) {
        more = *reinterpret_cast<const uint2*>(high + r * 8 * Shape::kHighRow);
      }
      uint32_t levels[2][4];
      make_levels<deviation>(low.x, more.x, of[r].bend, levels[0]);
      make_levels<deviation>(low.y, more.y, of[r].bend, levels[1]);
#pragma unroll
      for (int i = 0; i < 8; i++) a[i / 2][r + i % 2 * 2] = levels[i / 4][i % 4];
    }
  }

  // One group of a stage.
  __device__ __forceinline__ void multiply(const uint8_t* stage, int group) {
    uint32_t a[kTall][4][4];
    Coefficients of[kTall][2];
#pragma unroll
    for (int tile = 0; tile < kTall; tile++) {
      of[tile][0] = shared.coefficients[warp][group][tile * 16 + row];
      of[tile][1] = shared.coefficients[warp][group][tile * 16 + row + 8];
      decode(stage, group, tile, of[tile], a[tile]);
    }
    const uint32_t x = shared_address(stage + Shape::kIndexBytes + Shape::kHighBytes +
                                      group * eights * kFragment) +
                       static_cast<uint32_t>(lane) * 16;
#pragma unroll
    for (int eight = 0; eight < eights; eight++) {
      const uint4 low = quad_at<0>(x + eight * kFragment),
                  high = quad_at<512>(x + eight * kFragment);
#pragma unroll
      for (int tile = 0; tile < kTall; tile++) {
        float products[4] = {};
        multiply_add(products, a[tile][0], low.x, low.y);
        multiply_add(products, a[tile][1], low.z, low.w);
        multiply_add(products, a[tile][2], high.x, high.y);
        multiply_add(products, a[tile][3], high.z, high.w);
        float4& sum = sums[tile].of[eight];
        sum.x += products[0] * of[tile][0].scale;
        sum.y += products[1] * of[tile][0].scale;
        sum.z += products[2] * of[tile][1].scale;
        sum.w += products[3] * of[tile][1].scale;
      }
    }
  }

  // All of a block's units.
  __device__ __forceinline__ void run(int first, int last, const uint8_t* ring) {
    wait_for_earlier_kernels();
    Turn<Shape::kStages> place;
    int tile = first / plan.stages, begin = first - tile * plan.stages, along = begin;
    for (int at = first; at < last; at++, place.advance()) {
      const uint8_t* const stage = ring + place.stage * Shape::kStageBytes;
      shared.full[place.stage].wait(place.parity);
      read_scales(stage, along);
      __syncwarp();
#pragma unroll
      for (int group = 0; group < kUnitGroups; group++) multiply(stage, group);
      __syncwarp();
      if (lane == 0) shared.empty[place.stage].arrive();
      if (++along < plan.stages && at + 1 < last) continue;
#pragma unroll
      for (int i = 0; i < kTall; i++) {
        finish(plan, tile, begin, along, warp * kTall + i, above + i * 16 + row, sums[i]);
        sums[i] = {};
      }
      tile++;
      begin = along = 0;
    }
  }
};

template <int deviation, int eights>
__global__ void __launch_bounds__(FewShape<deviation, eights>::kThreads, 1)
    few_rows(const __grid_constant__ FewPlan plan, const __grid_constant__ CUtensorMap index,
             const __grid_constant__ CUtensorMap high) {
#if __CUDA_ARCH__ >= 900
  using Shape = FewShape<deviation, eights>;
  extern __shared__ uint8_t room[];
  __shared__ FewShared<Shape::kStages, Shape::kWarps, Shape::kTall> shared;
  uint8_t* const ring = room + (-shared_address(room) & 1023);
  const int thread = static_cast<int>(threadIdx.x), block = static_cast<int>(blockIdx.x);
  if (thread == Shape::kWarps * 32) {
    prefetch_map(index);
    if constexpr (deviation > 0) prefetch_map(high);
  }
  if (thread < Shape::kStages) {
    shared.full[thread].start(1 + 32);
    shared.empty[thread].start(Shape::kWarps);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  if (thread < kBendCount) shared.bends[thread] = fitted_bend_of(thread);
  __syncthreads();
  let_later_kernels_begin();
  const int first = first_unit(plan, block), last = first_unit(plan, block + 1);
  if (thread >= Shape::kWarps * 32) {
    const Filler<deviation, Shape> filler(plan, index, high, ring);
    filler.run(first, last, shared.full, shared.empty);
    return;
  }
  Multiplier<deviation, eights> multiplier(plan, shared);
  multiplier.run(first, last, ring);
#endif
}

int attribute_of_device(cudaDeviceAttr which) {
  int device = 0, value = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&value, which, device);
  return value;
}

int few_eights(int64_t m) { return m <= 16 ? 2 : m <= 32 ? 4 : 8; }

int64_t rounded_up(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// Bytes of the parts of a workspace, and how work is cut.
struct FewRoom {
  int64_t x, back, partial, arrived;

  FewRoom(const FewPlan& plan, int eights)
      : x(int64_t{plan.stages} * kUnitGroups * eights * kFragment),
        back(rounded_up(eights * 8 * 4)),
        partial(int64_t{plan.blocks} * 2 * eights * 8 * kTileRows * 4),
        arrived(int64_t{plan.tiles} * kCounters * 4) {}
};

FewPlan few_plan(const ProductTask& task) {
  FewPlan plan{};
  plan.task = task;
  plan.groups = static_cast<int>(groups_of(task.layout));
  plan.stages = (plan.groups + kUnitGroups - 1) / kUnitGroups;
  plan.tiles = static_cast<int>((task.out_features + kTileRows - 1) / kTileRows);
  const int64_t units = int64_t{plan.stages} * plan.tiles;
  const int most = attribute_of_device(cudaDevAttrMultiProcessorCount);
  plan.blocks = static_cast<int>(units < most ? units : most);
  plan.share = static_cast<int>(units / plan.blocks);
  plan.longer = static_cast<int>(units % plan.blocks);
  return plan;
}

template <int deviation, int eights>
void launch_few(const FewPlan& plan, cudaStream_t stream) {
  using Shape = FewShape<deviation, eights>;
  CUtensorMap index{}, high{};
  const Planes& planes = plan.task.planes;
  if (!encode_map(planes.index, 4, plan, &index)) return;
  if (deviation > 0 && !encode_map(planes.deviation, deviation, plan, &high)) return;
  prepare_few(plan, Shape::kRows, stream);
  const auto kernel = few_rows<deviation, eights>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kBytes);
  launch_early(kernel, plan.blocks, Shape::kThreads, Shape::kBytes, stream, plan, index, high);
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

void multiply_at_once(const ProductTask& task, void* workspace, cudaStream_t stream) {
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

}  // namespace

bool multiplies_few(const ProductTask& task) {
  const Layout& layout = task.layout;
  const auto at = [](const void* plane) { return reinterpret_cast<uintptr_t>(plane); };
  return layout.index_bits == 4 && layout.grid == GridName::kPhi && layout.group_size == 64 &&
         layout.deviation_bits <= 4 && task.remainder.payload == nullptr &&
         ((at(task.planes.index) | at(task.planes.deviation)) & 15) == 0 &&
         task.dtype != Dtype::kFloat32 && task.m <= kMostFewRows &&
         layout.columns < (int64_t{1} << 24) && task.out_features < (int64_t{1} << 24) &&
         attribute_of_device(cudaDevAttrComputeCapabilityMajor) >= 9 &&
         tensor_map_encoder() != nullptr;
}

int64_t few_workspace(const ProductTask& task) {
  const FewPlan plan = few_plan(task);
  const FewRoom room(plan, few_eights(task.m));
  return room.x + room.back + room.partial + room.arrived;
}

void multiply_few(const ProductTask& task, void* workspace, cudaStream_t stream) {
  for (int64_t done = 0; done < task.m; done += kRowsAtOnce) {
    ProductTask part = task;
    part.x = static_cast<const uint16_t*>(task.x) + done * task.layout.columns;
    part.out = static_cast<uint16_t*>(task.out) + done * task.out_features;
    part.m = task.m - done < kRowsAtOnce ? task.m - done : kRowsAtOnce;
    multiply_at_once(part, workspace, stream);
  }
}

}  // namespace phiquant::cuda
