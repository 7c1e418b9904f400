// The warpgroup that fills stages: one thread has codes and x copied, two warps make of scale words
// what codes are decoded with.
#pragma once

#include "many_rows_async.cuh"
#include "many_rows_tile.cuh"

namespace phiquant::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// By one thread. Each block of a pair copies half of the rows of x, to both.
template <int deviation, int wide>
__device__ __forceinline__ void copy_stages(const TileTask& task, const BlockPlace& place,
                                            const CUtensorMap* x, const CUtensorMap* index,
                                            const CUtensorMap* high,
                                            TileShared<deviation, wide>& shared) {
  using Shared = TileShared<deviation, wide>;
  constexpr int kHalf = wide / kPair;
  Turn<Shared::kStages> ring;
  Segment part;
  for (int unit = place.first; unit < place.last; unit += part.end - part.begin) {
    part = place.segment(task, unit);
    const int row = static_cast<int>(place.weight_row(task, part.tile));
    const int half = static_cast<int>(place.x_row(task, part.tile, wide) + place.rank * kHalf);
    for (int step = part.begin; step < part.end; step++) {
      auto& stage = shared.stages[ring.stage];
      const uint32_t full = shared_address(&shared.full[ring.stage]);
      wait_for(shared_address(&shared.empty[ring.stage]), ring.parity ^ 1);
      arrive_with_bytes(full, Shared::kCopied);
      copy_box(shared_address(stage.index), index, step * plane_bytes(4), row, full);
      if constexpr (deviation > 0) {
        copy_box(shared_address(stage.high), high, step * plane_bytes(deviation), row, full);
      }
      copy_box_to(3u, shared_address(stage.x) + place.rank * (kHalf * 128), x, step * kStepColumns,
                  half, full);
      ring.advance();
    }
  }
}

// By one warp: the levels of one consumer's rows, a lane of two.
template <class T, int deviation, int wide>
struct LevelMaker {
  using Shared = TileShared<deviation, wide>;
  static constexpr int kAhead = 4;  // steps that words are loaded ahead
  static constexpr int kEach = kConsumerRows / 32;

  const TileTask& task;
  const BlockPlace& place;
  Shared& shared;
  int row;  // of the tile, a lane's first

  __device__ __forceinline__ void load(int64_t first, int step, int end,
                                       uint32_t (&words)[kEach]) const {
#pragma unroll
    for (int i = 0; i < kEach; i++) {
      const int64_t at = first + row + 32 * i;
      words[i] = 0x400;  // some scale
      if (at < task.out_features && step < end)
        words[i] = __ldg(task.scale + at * task.groups + (step >> task.step_shift));
    }
  }

  __device__ __forceinline__ void store(int stage, int at, uint32_t word) const {
    const Scale scale = scale_of(task.layout, word, power_of_two(task.layout.exponent));
    const Bend bend = shared.bends[scale.bend];
    const Curve curve{bend.line, bend.cubic, scale.value};
    auto* const levels = reinterpret_cast<uint4*>(shared.stages[stage].levels);
    if constexpr (deviation == 0) {
      const LevelTable table = curve.table<T>();
      const int flip = at >> 2 & 1;
      levels[at * 2 + flip] = table.low;
      levels[at * 2 + (flip ^ 1)] = table.high;
    } else {
      const Curve scaled = curve.scaled();
      levels[at] = {__float_as_uint(scaled.line), __float_as_uint(scaled.cubic), 0, 0};
    }
  }

  __device__ __forceinline__ void run() const {
    Turn<Shared::kStages> ring;
    Segment part;
    for (int unit = place.first; unit < place.last; unit += part.end - part.begin) {
      part = place.segment(task, unit);
      const int64_t first = place.weight_row(task, part.tile);
      uint32_t words[kAhead][kEach];
#pragma unroll
      for (int i = 0; i < kAhead; i++) load(first, part.begin + i, part.end, words[i]);
      for (int step = part.begin; step < part.end; step += kAhead) {
#pragma unroll
        for (int i = 0; i < kAhead; i++) {
          if (step + i >= part.end) break;
          wait_for(shared_address(&shared.empty[ring.stage]), ring.parity ^ 1);
#pragma unroll
          for (int j = 0; j < kEach; j++) store(ring.stage, row + 32 * j, words[i][j]);
          __syncwarp();
          if ((threadIdx.x & 31) == 0) arrive(shared_address(&shared.full[ring.stage]));
          load(first, step + i + kAhead, part.end, words[i]);
          ring.advance();
        }
      }
    }
  }
};

#endif

}  // namespace phiquant::cuda
