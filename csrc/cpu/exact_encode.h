// Remainders of weights whose lossy planes are written: first their sizes, then their bits.
#pragma once

#include "exact_group.h"

namespace phiquant::cpu::PHIQUANT_ISA {

// What is left of a vector of weights: ranks after their sub-cells' first floats.
struct Rest {
  vi bits;    // of the weights as they are stored
  vi rest;    // 0 where astray
  vi astray;  // mask: not one of the sub-cell's floats
};

template <Dtype stored>
PHIQUANT_INLINE Rest rest_of(const uint8_t* weights, int at, bool turned, const Sides& sides,
                             const Subcells& cells) {
  constexpr bool kWide = stored == Dtype::kFloat32;
  constexpr int32_t kSign = kWide ? INT32_MIN : 0x8000;
  const vi bits =
      kWide ? load<vi>(weights + at * 4) : widen(reinterpret_cast<const uint16_t*>(weights) + at);
  const vi negative = (bits & kSign) != 0, rest = (bits & ~kSign) - cells.first;
  const vi side = turned ? ~sides.below : sides.below;
  const vi astray = (negative ^ side) | (rest < 0) | (rest > cells.spare);
  return {bits, rest & ~astray, astray};
}

// use(at, count of lanes, rest, width) for every vector of a group.
template <Dtype stored, class Use>
PHIQUANT_INLINE void for_rests(const RemainderTask& task, const Curve& curve, int64_t row,
                               const ExactGroup& group, Use use) {
  constexpr int64_t kWidth = stored == Dtype::kFloat32 ? 4 : 2;
  alignas(64) uint8_t padded[kLargestGroup * 4];
  const int64_t place = (row * task.layout.columns + group.column) * kWidth;
  const uint8_t* weights = static_cast<const uint8_t*>(task.weight) + place;
  if (group.count < task.layout.group_size) {
    std::memset(padded, 0, sizeof padded);
    std::memcpy(padded, weights, static_cast<size_t>(group.count * kWidth));
    weights = padded;
  }
  for_subcells<stored>(task.layout, task.planes, task.edges, curve, group,
                       [&](int at, const Sides& sides, const Subcells& cells, vi width) {
                         Rest rest = rest_of<stored>(weights, at, group.scale < 0, sides, cells);
                         rest.astray &= lane_numbers() + at < group.count;
                         use(at, rest, width);
                       });
}

template <Dtype stored>
static Status measure_row(const RemainderTask& task, const Curve& curve, int64_t row) {
  int64_t* sizes = task.sizes + row * blocks_of(task.layout);
  vi astray{}, bits{};
  const Status status = for_groups(task.layout, task.planes, row, [&](const ExactGroup& group) {
    if (begins_block(group)) bits = vi{};
    for_rests<stored>(task, curve, row, group, [&](int, const Rest& rest, vi width) {
      bits += width;
      astray -= rest.astray;
    });
    sizes[group.column / kBlock] = (sum_integers(bits) + 7) / 8;
    return Status::kOk;
  });
  task.astray[row] = sum_integers(astray);
  return status;
}

struct BitWriter {
  uint8_t* to;
  uint64_t held = 0;
  int count = 0;  // bits that are held, below 32

  PHIQUANT_MEMBER void put(uint32_t value, int width) {
    held |= static_cast<uint64_t>(value) << count;
    count += width;
    if (count < 32) return;
    std::memcpy(to, &held, 4);
    to += 4;
    held >>= 32;
    count -= 32;
  }
  PHIQUANT_MEMBER void flush() {
    std::memcpy(to, &held, static_cast<size_t>((count + 7) / 8));
    held = 0;
    count = 0;
  }
};

template <Dtype stored>
static Status write_row(const RemainderTask& task, const Curve& curve, int64_t row) {
  const int64_t* begins = task.begins + row * blocks_of(task.layout);
  int64_t* exception = task.exceptions + 2 * task.first_exception[row];
  BitWriter writer{nullptr};
  const auto add_exceptions = [&](int64_t column, const Rest& rest) {
    for (int i = 0; i < kLanes; i++) {
      if (rest.astray[i] == 0) continue;
      *exception++ = row * task.layout.columns + column + i;
      *exception++ = static_cast<uint32_t>(rest.bits[i]);
    }
  };
  const Status status = for_groups(task.layout, task.planes, row, [&](const ExactGroup& group) {
    if (begins_block(group)) {
      if (group.column > 0) writer.flush();
      writer.to = task.payload + begins[group.column / kBlock];
    }
    for_rests<stored>(task, curve, row, group, [&](int at, const Rest& rest, vi width) {
      alignas(64) int32_t widths[kLanes], values[kLanes];
      store(widths, width);
      store(values, rest.rest);
      for (int i = 0; i < kLanes; i++) writer.put(static_cast<uint32_t>(values[i]), widths[i]);
      if (any(rest.astray)) add_exceptions(group.column + at, rest);
    });
    return Status::kOk;
  });
  writer.flush();
  return status;
}

template <Dtype stored, Status (*of_row)(const RemainderTask&, const Curve&, int64_t)>
static Status for_rows(const RemainderTask& task, int64_t begin, int64_t end) {
  const Curve curve = Curve::of(task.layout);
  for (int64_t row = begin; row < end; row++) {
    const Status status = of_row(task, curve, row);
    if (status != Status::kOk) return status;
  }
  return Status::kOk;
}

static Status measure(const RemainderTask& task, int64_t begin, int64_t end) {
  constexpr Dtype kWide = Dtype::kFloat32, kBrain = Dtype::kBFloat16, kHalf = Dtype::kFloat16;
  return task.stored == kWide    ? for_rows<kWide, measure_row<kWide>>(task, begin, end)
         : task.stored == kBrain ? for_rows<kBrain, measure_row<kBrain>>(task, begin, end)
                                 : for_rows<kHalf, measure_row<kHalf>>(task, begin, end);
}

static Status write(const RemainderTask& task, int64_t begin, int64_t end) {
  constexpr Dtype kWide = Dtype::kFloat32, kBrain = Dtype::kBFloat16, kHalf = Dtype::kFloat16;
  return task.stored == kWide    ? for_rows<kWide, write_row<kWide>>(task, begin, end)
         : task.stored == kBrain ? for_rows<kBrain, write_row<kBrain>>(task, begin, end)
                                 : for_rows<kHalf, write_row<kHalf>>(task, begin, end);
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
