// Rows of x to stages, asked for by one warp of a block. Each block of a pair has half of them
// copied, to both.
#pragma once

#include "many_rows_async.cuh"
#include "many_rows_tile.cuh"

namespace phiquant::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

template <int deviation, int wide>
struct Copier {
  using Shared = TileShared<deviation, wide>;
  static constexpr int kHalf = wide / kPair;

  const TileTask& task;
  const BlockPlace& place;
  const CUtensorMap* x;
  Shared& shared;
  bool first;  // lane
  Turn<Shared::kStages> ring;
  int unit, step, row;

  __device__ __forceinline__ Copier(const TileTask& task, const BlockPlace& place,
                                    const CUtensorMap* x, Shared& shared, int lane)
      : task(task), place(place), x(x), shared(shared), first(lane == 0) {
    find(place.first);
  }

  __device__ __forceinline__ void find(int at) {
    const int tile = at / task.steps;
    unit = at;
    step = at - tile * task.steps;
    row = static_cast<int>(place.x_row(task, tile, wide) + place.rank * kHalf);
  }

  // Those of the next unit, if there is one.
  __device__ __forceinline__ void copy() {
    if (unit >= place.last) return;
    const uint32_t full = shared_address(&shared.full[ring.stage]);
    wait_for(shared_address(&shared.empty[ring.stage]), ring.parity ^ 1);
    arrive_with_bytes(first, full, sizeof(shared.x[0]));
    copy_box_to_pair(first, shared_address(shared.x[ring.stage]) + place.rank * (kHalf * 128), x,
                     step * kStepColumns, row, full);
    ring.advance();
    unit++;
    if (++step == task.steps) find(unit);
  }
};

#endif

}  // namespace phiquant::cuda
