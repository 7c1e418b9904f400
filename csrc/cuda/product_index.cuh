// Products of one row of x with indices alone. Blocks stay, one a multiprocessor: a thread of its
// own fills a ring of units in shared memory by bulk copies, 16 warps take a stage of each unit, x
// becomes digits once, and sums are added up when all of a block's tiles are done, in one order.
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
inline constexpr int kIndexThreads = (kIndexWarps + 1) * 32;
inline constexpr int kMostDepth = 4;
#ifndef PQ_FIRST
#define PQ_FIRST 4
#endif
inline constexpr int kFirstUnits = PQ_FIRST;  // that are asked for with x

// Tiles are 16 rows; blocks take them in turn, and units of 16 stages of their tiles, one after
// the other.
struct IndexPlan {
  ProductTask task;
  int groups, stages;  // of a row
  int tiles, more;     // of a block, but of the first `more`, which have one more
  int depth;           // units of the ring

  __device__ __forceinline__ int tiles_of_block() const {
    return tiles + (static_cast<int>(blockIdx.x) < more ? 1 : 0);
  }
  __device__ __forceinline__ int64_t first_row(int tile) const {
    return (blockIdx.x + int64_t{static_cast<unsigned>(tile)} * gridDim.x) * kTile;
  }
};

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

// The thread that fills the ring.
struct IndexFiller {
  const IndexPlan& plan;
  uint8_t* ring;
  IndexBarriers& barriers;
  int tiles;
  StagePlace place{0, 0};
  RingTurn turn{};
  int filled = 0;

  // What a unit has of one tile, from its stage `from` on: `use` is told where each row of codes
  // and of scale words is, how many bytes it has, and where it goes in the unit.
  template <class Use>
  __device__ __forceinline__ int rows(const StagePlace& place, int from, int count,
                                      const Use& use) const {
    const int64_t row = plan.first_row(place.tile), left = plan.task.out_features - row;
    const int all = left < kTile ? static_cast<int>(left) : kTile;
    const int64_t group = row * plan.groups + place.stage * kStageGroups;
    const uint8_t* codes = plan.task.planes.index + group * (kGroup / 2);
    const uint16_t* words = plan.task.planes.scale + group;
    for (int i = 0; i < all; i++, codes += plan.groups * (kGroup / 2), words += plan.groups) {
      use(codes, count * UnitPlace::kStageBytes,
          i * UnitPlace::kRow + from * UnitPlace::kStageBytes);
      use(words, count * UnitPlace::kStageWords,
          UnitPlace::kWords + i * UnitPlace::kWordRow + from * UnitPlace::kStageWords);
    }
    return all * count * (UnitPlace::kStageBytes + UnitPlace::kStageWords);
  }

  // The unit that begins at `place`, which goes on to where the next one does.
  template <class Use>
  __device__ __forceinline__ int unit(StagePlace* place, const Use& use) const {
    int bytes = 0;
    for (int from = 0; from < UnitPlace::kStages && place->tile < tiles;) {
      const int count = min(UnitPlace::kStages - from, plan.stages - place->stage);
      bytes += rows(*place, from, count, use);
      from += count;
      place->advance(count, plan.stages);
    }
    return bytes;
  }

  __device__ __forceinline__ void begin() {
    for (int i = 0; i < plan.depth; i++) {
      barriers.full[i].start(1);
      barriers.empty[i].start(kIndexWarps);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#ifndef PQ_FETCH
#define PQ_FETCH 1
#endif
    StagePlace first = place;
    for(int i=0;i<PQ_FETCH;i++) unit(&first, [](const void* from, int bytes, int) {
      asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes));
    });
  }

  // The next unit, which there is room for.
  __device__ __forceinline__ void fill() {
    Barrier& full = barriers.full[turn.unit];
    uint8_t* const to = ring + turn.unit * UnitPlace::kBytes;
    StagePlace same = place;
    full.expect(unit(&same, [](const void*, int, int) {}));
    unit(&place,
         [&](const void* from, int bytes, int at) { copy_bytes(from, bytes, to + at, full); });
    turn.advance(plan.depth);
  }

  // The first units.
  __device__ __forceinline__ void fill_some() {
    asm volatile("fence.proxy.async.global;" ::: "memory");
    for (; filled < min(kFirstUnits, plan.depth) && place.tile < tiles; filled++) fill();
  }

  // All others. From when on `turn` has gone round once, units are awaited in the phase before.
  __device__ __forceinline__ void fill_all() {
    for (; place.tile < tiles; filled++) {
      if (filled >= plan.depth) barriers.empty[turn.unit].wait(turn.parity ^ 1);
      fill();
    }
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

// A warp's stages of all units.
__device__ __forceinline__ void multiply_units(const IndexPlan& plan, const IndexParts& parts,
                                               const IndexShared& shared, IndexBarriers& barriers,
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
  while (place.tile < tiles) {
    const int tile = place.tile, step = place.stage * (kStageGroups / kStepGroups);
    place.advance(kIndexWarps, plan.stages);
    barriers.full[turn.unit].wait(turn.parity);
    worker.multiply_stage(memory + turn.unit * UnitPlace::kBytes, step, part);
    __syncwarp();
    if (lane == 0) barriers.empty[turn.unit].arrive();
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
  if (warp == kIndexWarps) {
    IndexFiller filler{plan, memory, barriers, tiles};
    const bool fills = thread % 32 == 0;
    if (fills) filler.begin();
    wait_for_earlier_kernels();
    admit_next_kernel();
    if (fills) filler.fill_some();
    __syncthreads();
    if (fills) filler.fill_all();
  } else {
    for (int i = thread; i < IndexParts::kZeros / 4; i += kIndexWarps * 32)
      reinterpret_cast<uint32_t*>(memory + parts.zeros)[i] = 0;
    shared.fill(power_of_two(plan.task.layout.exponent));
    wait_for_earlier_kernels();
    admit_next_kernel();
    const DigitsPreparation<brain> preparation{
        static_cast<const uint16_t*>(plan.task.x), static_cast<int>(plan.task.layout.columns),
        plan.groups, memory + parts.fragments,
        reinterpret_cast<StepParts*>(memory + parts.steps)};
    preparation.template run<kIndexWarps * 32>();
    __syncthreads();
    multiply_units(plan, parts, shared, barriers, memory, tiles, warp);
  }
  __syncthreads();
  store_index_tiles<T>(plan, tiles, reinterpret_cast<const float*>(memory + parts.partial));
#endif
}

}  // namespace phiquant::cuda
