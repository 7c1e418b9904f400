// Codes on their way from memory to one warp: a ring of stages in shared memory, filled by
// asynchronous copies, so that what is in flight takes no registers. A stage is 4 groups of the 16
// rows of a tile: 128 bytes a row of a plane of nibbles.
#pragma once

#include "fragments.cuh"
#include "overlap.cuh"
#include "stages.cuh"

namespace phiquant::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// 16 bytes, or zeros without a look at `from`.
__device__ __forceinline__ void copy_async(uint32_t to, const uint8_t* from, bool there) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(there ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;"); }
__device__ __forceinline__ void await_all_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}
template <int pending>
__device__ __forceinline__ void await_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// A stage of one plane of `group_bytes` a group, 32 or 16. The groups of a row trade places so that
// lanes that read a group of 8 rows, and the rows 8 further, touch every bank once.
template <int group_bytes>
struct PlaneStage {
  static constexpr int kRowBytes = kStageGroups * group_bytes;
  static constexpr int kBytes = kTile * kRowBytes;
  static constexpr int kLanes = kRowBytes / 16;  // that copy a row
  static constexpr int kRows = 32 / kLanes;      // that a warp copies at a time

  static __device__ __forceinline__ int place(int row, int group) {
    const int turn = group_bytes == 32 ? (row & 1) * 2 + (row >> 1 & 1) : row >> 1 & 3;
    return row * kRowBytes + (group ^ turn) * group_bytes;
  }
  // Where lane 4 r + t finds its 16 columns of group 0, row r; ^ group * group_bytes for others.
  static __device__ __forceinline__ int read_place(int lane) {
    return place(lane >> 2, 0) + (lane & 3) * (group_bytes / 4);
  }
  static __device__ __forceinline__ int row(int lane) { return lane / kLanes; }
  static __device__ __forceinline__ int group(int lane) { return lane % kLanes * 16 / group_bytes; }
  static __device__ __forceinline__ int write_place(int lane) {
    return place(row(lane), group(lane)) + lane * 16 % group_bytes;
  }
};

// One lane's part in copying a plane: its first row's bytes, and how far the others' are from them.
// Rows that the weight does not have are its last one instead.
template <int group_bytes>
struct Copier {
  using Stage = PlaneStage<group_bytes>;
  static constexpr int kRows = kTile / Stage::kRows;
  const uint8_t* from;
  int32_t apart[kRows];

  __device__ __forceinline__ void turn_to(const Cut& cut, const uint8_t* plane, const Place& place,
                                          int lane) {
    const int row_bytes = cut.groups * group_bytes, last = cut.rows_of(place.tile) - 1;
    from = plane + cut.first_row(place.tile) * row_bytes + place.stage * Stage::kRowBytes +
           lane % Stage::kLanes * 16;
#pragma unroll
    for (int i = 0; i < kRows; i++)
      apart[i] = min(Stage::row(lane) + i * Stage::kRows, last) * row_bytes;
  }

  // Zeros for groups that the rows do not have.
  __device__ __forceinline__ void copy(uint32_t to, int lane, int groups_left) {
    const bool there = Stage::group(lane) < groups_left;
#pragma unroll
    for (int i = 0; i < kRows; i++)
      copy_async(to + i * Stage::kRows * Stage::kRowBytes, from + apart[i], there);
    from += Stage::kRowBytes;
  }

  __device__ __forceinline__ void fetch(int lane) const {
    if (lane % Stage::kLanes != 0) return;
#pragma unroll
    for (int i = 0; i < kRows; i++) fetch_to_l2(from + apart[i]);
  }
};

// The codes of one lane, group and row: 16 columns of each plane.
struct Codes {
  uint2 index, high, low;
};

// A warp's ring of `depth` stages.
template <int deviation, int depth>
struct Ring {
  static constexpr int kHighGroup = deviation == 2 ? 16 : 32;  // bytes
  using Index = PlaneStage<32>;
  using High = PlaneStage<kHighGroup>;
  static constexpr int kHigh = Index::kBytes;  // where a stage has its planes
  static constexpr int kLow = kHigh + High::kBytes;
  static constexpr int kStage = deviation == 0   ? kHigh
                                : deviation == 8 ? kLow + Index::kBytes
                                                 : kLow;
  static constexpr int kBytes = depth * kStage;

  const Cut& cut;
  const Planes& planes;
  Copier<32> index, low;
  Copier<kHighGroup> high;
  const uint8_t* shared;  // this warp's kBytes
  int at = 0;             // in them: of the stage that is read, and then filled again, next
  Place place;            // what is copied next
  int lane;

  __device__ __forceinline__ Ring(const Cut& tiles, const Planes& from, const uint8_t* memory,
                                  int warp, int its_lane)
      : cut(tiles), planes(from), shared(memory), place(tiles, warp), lane(its_lane) {
    if (place.left > 0) open_tile();
  }

  __device__ __forceinline__ void open_tile() {
    index.turn_to(cut, planes.index, place, lane);
    if constexpr (deviation != 0) high.turn_to(cut, planes.deviation, place, lane);
    if constexpr (deviation == 8) low.turn_to(cut, planes.deviation_low, place, lane);
  }

  // The first stage, to the L2 cache.
  __device__ __forceinline__ void fetch() const {
    if (place.left <= 0) return;
    index.fetch(lane);
    if constexpr (deviation != 0) high.fetch(lane);
    if constexpr (deviation == 8) low.fetch(lane);
  }

  __device__ __forceinline__ void fill() {
    if (place.left > 0) {
      const uint32_t to = shared_address(shared) + at;
      const int groups_left = cut.groups - place.stage * kStageGroups;
      index.copy(to + Index::write_place(lane), lane, groups_left);
      if constexpr (deviation != 0)
        high.copy(to + kHigh + High::write_place(lane), lane, groups_left);
      if constexpr (deviation == 8)
        low.copy(to + kLow + Index::write_place(lane), lane, groups_left);
      if (place.advance(cut) && place.left > 0) open_tile();
    }
    commit_copies();
    at = at == (depth - 1) * kStage ? 0 : at + kStage;
  }

  __device__ __forceinline__ void begin() {
    for (int i = 0; i < depth; i++) fill();
  }

  __device__ __forceinline__ void await() const {
    await_copies<depth - 1>();
    __syncwarp();
  }

  // What was read is replaced.
  __device__ __forceinline__ void refill() {
    __syncwarp();
    fill();
  }

  // Rows r and r + 8 of one group.
  __device__ __forceinline__ void read(int group, Codes (&codes)[2]) const {
    const uint8_t* const stage = shared + at;
    const int mine = Index::read_place(lane) ^ group * 32;
    const int high_mine = kHigh + (High::read_place(lane) ^ group * kHighGroup);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const uint8_t* const row = stage + r * 8 * Index::kRowBytes;
      codes[r].index = *reinterpret_cast<const uint2*>(row + mine);
      if constexpr (deviation == 2) {
        const uint8_t* const high_row = stage + r * 8 * High::kRowBytes;
        codes[r].high.x = *reinterpret_cast<const uint32_t*>(high_row + high_mine);
        codes[r].high.y = codes[r].high.x >> 16;
      }
      if constexpr (deviation >= 4)
        codes[r].high = *reinterpret_cast<const uint2*>(row + high_mine);
      if constexpr (deviation == 8)
        codes[r].low = *reinterpret_cast<const uint2*>(row + kLow + mine);
    }
  }
};

}  // namespace phiquant::cuda
