// The rows of x that an exact product multiplies its strips by, as tensor operations take them.
#pragma once

#include "exact_walk.cuh"
#include "product_cut.cuh"
#include "ring.cuh"

namespace phiquant::cuda {

// Where a warp finds them: in memory as they are, octet by octet of 16 bytes if they are aligned;
// or in shared memory, in the order in which lanes read them.
enum class XPlace { kAny, kAligned, kShared };

// Of 4, 8 or 16 rows of x. A lane has two runs of 16 columns. With 4 rows there are two rows for
// each run, and a lane has one of them.
template <int rows, XPlace place>
struct RowsOfX {
  static constexpr bool kBoth = rows == 4;
  static constexpr bool kPastL1 = kBoth || place == XPlace::kShared;  // which may be stale
  static constexpr int kEights = kBoth ? 1 : rows / 8;
  static constexpr int kRuns = kBoth ? 1 : 2;
  static constexpr int kColumns = 4 * 2 * kSixteen;    // of a strip
  static constexpr int kOctets = kEights * kRuns * 2;  // of a lane and strip
  static constexpr int kStripBytes = kOctets * 32 * 16;

  struct Sixteens {
    uint32_t of[kOctet];
  };

  const uint16_t* x[kEights];  // this lane's rows, from its first columns on
  int left[kEights];           // columns of them from there on; none of a row that is not there
  const uint4* shared;         // this lane's octets

  static int64_t shared_bytes(int64_t columns) {
    return (columns + kColumns - 1) / kColumns * kStripBytes;
  }

  __device__ __forceinline__ RowsOfX(const ProductTask& task, const StripShape& shape,
                                     const uint8_t* memory, int lane)
      : shared(reinterpret_cast<const uint4*>(memory) + lane) {
    const int first = (lane & 3) * 2 * kSixteen + (kBoth ? lane / 4 % 2 * kSixteen : 0);
#pragma unroll
    for (int eight = 0; eight < kEights; eight++) {
      const int64_t row = kBoth ? lane / 8 : lane / 4 + 8 * eight;
      // What the rows that are not there are multiplied to is never stored.
      x[eight] =
          static_cast<const uint16_t*>(task.x) + min(row, task.m - 1) * shape.columns + first;
      left[eight] = shape.columns - first;
      if (place == XPlace::kShared && row >= task.m) left[eight] = 0;  // read by nobody
    }
  }

  // All of x to shared memory, by all warps; copies have to be awaited and a barrier has to follow.
  // Blocks begin at different columns, for all read the same.
  __device__ __forceinline__ void stage(int columns, int warp, int warps) const {
    const int strips = (columns + kColumns - 1) / kColumns;
    const uint32_t to = shared_address(shared);
    for (int turn = warp; turn < strips; turn += warps) {
      const int strip = (turn + static_cast<int>(blockIdx.x)) % strips;
#pragma unroll
      for (int i = 0; i < kOctets; i++) {
        const int eight = i / (2 * kRuns), column = strip * kColumns + i % (2 * kRuns) * kOctet;
        const auto* const from = reinterpret_cast<const uint8_t*>(x[eight] + column);
        copy_async(to + (strip * kOctets + i) * 512, from, column < left[eight]);
      }
    }
  }

  template <class T>
  static __device__ __forceinline__ T read(const T* from) {
    return kPastL1 ? __ldcg(from) : __ldg(from);
  }

  // 16 columns of a row: of the run `run` of the strip at `column`. `whole`: x does not end there.
  template <bool whole>
  __device__ __forceinline__ Sixteens load(int eight, int column, int run) const {
    Sixteens sixteens;
    auto* const octets = reinterpret_cast<uint4*>(sixteens.of);
    if constexpr (place == XPlace::kShared) {
      const int octet = column / kColumns * kOctets + (eight * kRuns + run) * 2;
#pragma unroll
      for (int i = 0; i < 2; i++) octets[i] = shared[(octet + i) * 32];
      return sixteens;
    }
    const int more = column + run * kSixteen;
    const uint16_t* const from = x[eight] + static_cast<uint32_t>(more);
    if constexpr (whole && place == XPlace::kAligned) {
#pragma unroll
      for (int i = 0; i < 2; i++) octets[i] = read(reinterpret_cast<const uint4*>(from) + i);
    } else {
#pragma unroll
      for (int i = 0; i < kSixteen; i += 2) {
        const uint32_t low = more + i < left[eight] ? read(from + i) : 0;
        const uint32_t high = more + i + 1 < left[eight] ? read(from + i + 1) : 0;
        sixteens.of[i / 2] = low | high << 16;
      }
    }
    return sixteens;
  }
};

}  // namespace phiquant::cuda
