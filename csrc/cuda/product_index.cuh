// Products of one row of x with indices alone. Blocks stay, one a multiprocessor: units of codes
// come to a ring in shared memory by bulk copies, of which each of 16 warps asks for one row, and
// each takes a stage of every unit; x becomes digits once, and sums are added up when all of a
// block's tiles are done, in one order.
//
// Before the kernel ahead has ended, nothing is read but the first unit, to the L2 cache, which is
// never stale: what that kernel may be is not known, nor whether it writes a weight.
#pragma once

#include <type_traits>

#include "few_rows_ring.cuh"
#include "overlap.cuh"
#include "product_digits.cuh"
#include "sums.cuh"

namespace phiquant::cuda {

inline constexpr int kIndexWarps = UnitPlace::kStages;
inline constexpr int kIndexThreads = kIndexWarps * 32;
inline constexpr int kMostDepth = 4;
static_assert(kIndexWarps == kTile);

// Tiles are 16 rows; blocks take them in turn, and units of 16 stages of their tiles, one after
// the other.
struct IndexPlan {
  ProductTask task;
  int groups, stages;  // of a row
  int tiles, more;     // of a block, but of the first `more`, which have one more
  int depth;           // units of the ring
  int64_t apart;       // groups between where a row of a tile ends and where that of the next begins

  __device__ __forceinline__ int tiles_of_block() const {
    return tiles + (static_cast<int>(blockIdx.x) < more ? 1 : 0);
  }
  __device__ __forceinline__ int64_t first_row(int tile) const {
    return (blockIdx.x + int64_t{static_cast<unsigned>(tile)} * gridDim.x) * kTile;
  }
};

__device__ __forceinline__ void fetch_bytes(const void* from, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes));
}

// Where the parts of a block's shared memory begin, in bytes; the ring is the first.
struct IndexParts {
  static constexpr int kZeros = 2 * kStepBytes;  // as far as a lane reads of a stage
  int zeros, fragments, steps, partial, end;

  __host__ __device__ explicit IndexParts(const IndexPlan& plan) {
    const int count = plan.groups / kStepGroups;
    zeros = plan.depth * UnitPlace::kBytes;
    fragments = zeros + kZeros;
    steps = fragments + count * kStepBytes;
    partial = steps + count * static_cast<int>(sizeof(StepParts));
    end = partial + (plan.tiles + 1) * kIndexWarps * kTile * static_cast<int>(sizeof(float));
  }
};

struct IndexBarriers {
  Barrier full[kMostDepth], empty[kMostDepth];

  __device__ __forceinline__ void start(int depth) {
    for (int i = 0; i < depth; i++) {
      full[i].start(kIndexWarps);
      empty[i].start(kIndexWarps);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
};

// Which unit of the ring is next, and the parity of its barriers.
struct RingTurn {
  int unit = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void advance(int depth) {
    if (++unit < depth) return;
    unit = 0;
    parity ^= 1;
  }
};

// A stage of a tile.
struct StagePlace {
  int tile, stage;

  __device__ __forceinline__ void advance(int by, int stages) {
    stage += by;
    while (stage >= stages) stage -= stages, tile++;
  }
};

// What a warp asks for: its row of each unit.
struct RowFiller {
  const IndexPlan& plan;
  uint8_t* ring;
  IndexBarriers& barriers;
  int tiles, row;
  StagePlace place{0, 0};
  RingTurn turn{};
  int64_t group;  // the place's, in the whole weight

  __device__ __forceinline__ RowFiller(const IndexPlan& its_plan, uint8_t* memory,
                                       IndexBarriers& its_barriers, int its_tiles, int warp)
      : plan(its_plan),
        ring(memory),
        barriers(its_barriers),
        tiles(its_tiles),
        row(warp),
        group((plan.first_row(0) + warp) * plan.groups) {}

  // The next `count` stages of its row, to stage `from` of the unit; a weight's last tile may have
  // no such row.
  __device__ __forceinline__ void copy(uint8_t* to, int from, int count, Barrier& full) const {
    if (plan.first_row(place.tile) + row >= plan.task.out_features) return;
    copy_bytes(plan.task.planes.index + group * (kGroup / 2), count * UnitPlace::kStageBytes,
               to + row * UnitPlace::kRow + from * UnitPlace::kStageBytes, full);
    copy_bytes(plan.task.planes.scale + group, count * UnitPlace::kStageWords,
               to + UnitPlace::kWords + row * UnitPlace::kWordRow + from * UnitPlace::kStageWords,
               full);
  }

  // How many stages of its tile a unit has from its stage `from` on.
  __device__ __forceinline__ int count(const StagePlace& of, int from) const {
    return min(UnitPlace::kStages - from, plan.stages - of.stage);
  }

  __device__ __forceinline__ int bytes() const {
    int all = 0, from = 0;
    for (StagePlace of = place; from < UnitPlace::kStages && of.tile < tiles;) {
      const int some = count(of, from);
      if (plan.first_row(of.tile) + row < plan.task.out_features) all += some;
      from += some;
      of.advance(some, plan.stages);
    }
    return all * (UnitPlace::kStageBytes + UnitPlace::kStageWords);
  }

  // The next unit, where there is room for it.
  __device__ __forceinline__ void fill() {
    Barrier& full = barriers.full[turn.unit];
    uint8_t* const to = ring + turn.unit * UnitPlace::kBytes;
    full.expect(bytes());
    for (int from = 0; from < UnitPlace::kStages && place.tile < tiles;) {
      const int some = count(place, from), tile = place.tile;
      copy(to, from, some, full);
      from += some;
      group += some * kStageGroups;
      place.advance(some, plan.stages);
      if (place.tile != tile) group += plan.apart;
    }
    turn.advance(plan.depth);
  }

  // Before anything may be read: of the first unit, to the L2 cache.
  __device__ __forceinline__ void fetch() const {
    if (tiles == 0 || plan.first_row(0) + row >= plan.task.out_features) return;
    const int some = count(place, 0);
    fetch_bytes(plan.task.planes.index + group * (kGroup / 2), some * UnitPlace::kStageBytes);
    fetch_bytes(plan.task.planes.scale + group, some * UnitPlace::kStageWords);
  }

  __device__ __forceinline__ void begin() {
    asm volatile("fence.proxy.async.global;" ::: "memory");
    for (int i = 0; i < plan.depth && place.tile < tiles; i++) fill();
  }

  // In the place of a unit that all warps have read, in the phase before `turn`'s.
  __device__ __forceinline__ void refill() {
    if (place.tile >= tiles) return;
    barriers.empty[turn.unit].wait(turn.parity ^ 1);
    fill();
  }
};

// Warp w leaves the sums of tile t at 16 t + w, if it has stages of it.
template <class T>
__device__ __forceinline__ void store_index_tiles(const IndexPlan& plan, int tiles,
                                                  const float* partial) {
  for (int i = static_cast<int>(threadIdx.x); i < tiles * kTile; i += kIndexThreads) {
    const int tile = i / kTile;
    const int64_t row = plan.first_row(tile) + i % kTile;
    if (row >= plan.task.out_features) continue;
    float sum = 0;
#pragma unroll
    for (int warp = 0; warp < kIndexWarps; warp++) {
      const float part = partial[(tile * kIndexWarps + warp) * kTile + i % kTile];
      if (((warp - tile * plan.stages) & (kIndexWarps - 1)) < plan.stages) sum += part;
    }
    store_sum<T>(plan.task, 0, row, sum);
  }
}

// A warp's stages of all units. It asks for what takes a unit's place when it has read the next
// one, so as not to wait for the others.
__device__ __forceinline__ void multiply_units(const IndexPlan& plan, const IndexParts& parts,
                                               const IndexShared& shared, RowFiller* filler,
                                               uint8_t* memory, int tiles, int warp) {
  const int lane = lane_of_thread(), digit = lane >> 2 & 3, part = lane & 3;
  const bool there = lane >> 4 == part >> 1;  // this lane's column is of its group
  const int digits = parts.fragments + digit_place(digit, part);
  IndexWorker worker{shared,
                     reinterpret_cast<const StepParts*>(memory + parts.steps),
                     {memory + (there ? digits : parts.zeros),
                      memory + (there ? digits ^ 64 : parts.zeros)},
                     there ? kStepBytes : 0,
                     warp * UnitPlace::kStageBytes + (lane >> 2) * UnitPlace::kRow + part * 16,
                     UnitPlace::kWords + warp * UnitPlace::kStageWords +
                         (lane >> 2) * UnitPlace::kWordRow + (part >> 1) * 2,
                     shared.tables};
  auto* const partial = reinterpret_cast<float*>(memory + parts.partial) + warp * kTile;
  RingTurn turn;
  StagePlace place{0, 0};
  place.advance(warp, plan.stages);
  IndexBarriers& barriers = filler->barriers;
  for (bool first = true; place.tile < tiles; first = false) {
    const int tile = place.tile, step = place.stage * (kStageGroups / kStepGroups);
    place.advance(kIndexWarps, plan.stages);
    barriers.full[turn.unit].wait(turn.parity);
    worker.multiply_stage(memory + turn.unit * UnitPlace::kBytes, step, part);
    __syncwarp();
    if (lane == 0) {
      barriers.empty[turn.unit].arrive();
      if (!first) filler->refill();
    }
    turn.advance(plan.depth);
    if (place.tile != tile) worker.finish(partial + tile * (kIndexWarps * kTile), lane);
  }
}

template <bool brain>
__global__ void __launch_bounds__(kIndexThreads, 1)
    product_of_indices(const __grid_constant__ IndexPlan plan) {
#if __CUDA_ARCH__ >= 900
  using T = std::conditional_t<brain, __nv_bfloat16, __half>;
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ IndexShared shared;
  __shared__ IndexBarriers barriers;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  const int tiles = plan.tiles_of_block();
  const IndexParts parts(plan);
  RowFiller filler(plan, memory, barriers, tiles, warp);
  const bool fills = lane_of_thread() == 0;
  if (fills) filler.fetch();
  if (thread == 0) barriers.start(plan.depth);
  for (int i = thread; i < IndexParts::kZeros / 4; i += kIndexThreads)
    reinterpret_cast<uint32_t*>(memory + parts.zeros)[i] = 0;
  shared.fill(power_of_two(plan.task.layout.exponent));
  __syncthreads();
  wait_for_earlier_kernels();
  admit_next_kernel();
  const DigitsPreparation<brain> preparation{
      static_cast<const uint16_t*>(plan.task.x), static_cast<int>(plan.task.layout.columns),
      plan.groups, memory + parts.fragments, reinterpret_cast<StepParts*>(memory + parts.steps)};
  preparation.template run<kIndexThreads>([&] {
    if (fills) filler.begin();
  });
  __syncthreads();
  multiply_units(plan, parts, shared, &filler, memory, tiles, warp);
  __syncthreads();
  store_index_tiles<T>(plan, tiles, reinterpret_cast<const float*>(memory + parts.partial));
#endif
}

}  // namespace phiquant::cuda
