// Planes and remainders to the original weights. Offsets, starts and remainders are as they were
// stored: nothing is read outside of the payload, and what does not fit the other planes is found.
#pragma once

#include "exact_group.h"

namespace phiquant::cpu::PHIQUANT_ISA {

template <Dtype stored>
inline constexpr int kMostBits = stored == Dtype::kFloat32 ? 31 : 15;
inline constexpr int kReach = 64;  // bytes that a reader may load from where it stands

// A stream of remainders, least significant bit first.
struct BitReader {
  const uint8_t* bytes;
  int64_t bit;
};

// The next `width` bits of every lane, lane after lane.
template <Dtype stored>
PHIQUANT_INLINE vi take_bits(BitReader* reader, vi width) {
  // Through memory: moving single lanes in and out of registers takes longer.
  alignas(64) int32_t widths[kLanes], values[kLanes];
  store(widths, width);
  int64_t bit = reader->bit;
  for (int i = 0; i < kLanes; i++) {
    uint64_t word;
    std::memcpy(&word, reader->bytes + (bit >> 3), sizeof word);
    word >>= bit & 7;
    values[i] = static_cast<int32_t>(word & ((uint64_t{1} << widths[i]) - 1));
    bit += widths[i];
  }
  reader->bit = bit;
  return load<vi>(values);
}

// One open block of the remainder plane.
template <Dtype stored>
struct Block {
  int64_t number, begin;
  BitReader reader;
  alignas(64) uint8_t copy[kBlock * kMostBits<stored> / 8 + kReach];
};

// Where a block begins; -1 if its start is not inside of the payload.
PHIQUANT_INLINE int64_t begin_of(const Remainder& remainder, int64_t block) {
  const int64_t start = remainder.starts[remainder.consecutive ? block / kBlocksPerStart : block];
  if (start < 0 || start > remainder.size) return -1;
  return start + remainder.offsets[block];
}

template <Dtype stored>
PHIQUANT_INLINE Status open_block(const Remainder& remainder, int64_t number,
                                  Block<stored>* block) {
  const int64_t begin = begin_of(remainder, number), rest = remainder.size - begin;
  block->number = number;
  block->begin = begin;
  if (begin < 0 || rest < kPadding) return Status::kOutside;
  block->reader = {remainder.payload + begin, 0};
  if (rest < static_cast<int64_t>(sizeof block->copy)) {
    std::memset(block->copy, 0, sizeof block->copy);
    std::memcpy(block->copy, remainder.payload + begin, static_cast<size_t>(rest));
    block->reader.bytes = block->copy;
  }
  return Status::kOk;
}

template <Dtype stored>
PHIQUANT_INLINE Status close_block(const Remainder& remainder, const Block<stored>& block) {
  const int64_t end = block.begin + ((block.reader.bit + 7) >> 3), last = remainder.size - kPadding;
  if (end > last) return Status::kOutside;
  if (!remainder.consecutive) return Status::kOk;
  const int64_t next = block.number + 1;
  const int64_t wanted = next < remainder.blocks ? begin_of(remainder, next) : last;
  return end == wanted ? Status::kOk : Status::kApart;
}

// From the block before `column`, if there is one, to the one that begins there.
template <Dtype stored>
PHIQUANT_INLINE Status turn_block(const Remainder& remainder, int64_t first, int64_t column,
                                  Block<stored>* block) {
  const Status closed = column == 0 ? Status::kOk : close_block(remainder, *block);
  return closed == Status::kOk ? open_block(remainder, first + column / kBlock, block) : closed;
}

// `count` weights, given as bits of the stored dtype in lanes of 32, to `dtype`.
template <Dtype stored>
PHIQUANT_INLINE void store_exact(Dtype dtype, const vi* bits, int32_t count, uint8_t* to) {
  alignas(64) uint8_t whole[kLargestGroup * 4];
  alignas(64) float wide[kLargestGroup];
  for (int at = 0; at < count; at += kLanes) {
    const vi value = bits[at / kLanes];
    if (stored == Dtype::kFloat32) {
      store(wide + at, value);
    } else if (dtype == stored) {
      store(whole + at * 2, narrow(value));
    } else if (stored == Dtype::kBFloat16) {
      store(wide + at, value << 16);
    } else {
      alignas(64) uint16_t halves[kLanes];
      store(halves, narrow(value));
      store(wide + at, halves_to_floats(halves));
    }
  }
  const size_t bytes = static_cast<size_t>(count * size_of(dtype));
  if (dtype == stored && stored == Dtype::kFloat32) {
    std::memcpy(to, wide, bytes);
    return;
  }
  if (dtype != stored) round_weights(dtype, wide, (count + kLanes - 1) / kLanes * kLanes, whole);
  std::memcpy(to, whole, bytes);
}

template <Dtype stored>
PHIQUANT_INLINE Status decode_exact_group(const DecodeTask& task, const Curve& curve,
                                          const ExactGroup& group, BitReader* reader, uint8_t* to) {
  constexpr int32_t kSign = stored == Dtype::kFloat32 ? INT32_MIN : 0x8000;
  const vi turned = vi{} + (group.scale < 0 ? kSign : 0);
  vi bits[kLargestGroup / kLanes], bad{};
  for_subcells<stored>(task.layout, task.planes, task.remainder.edges, curve, group,
                       [&](int at, const Sides& sides, const Subcells& cells, vi width) {
                         const vi rest = PHIQUANT_TAKE_BITS<stored>(reader, width);
                         bad |= rest > cells.spare;
                         const vi sign = (sides.below & kSign) ^ turned;
                         bits[at / kLanes] = (cells.first + rest) | sign;
                       });
  store_exact<stored>(task.dtype, bits, group.count, to);
  return any(bad) ? Status::kBadRemainder : Status::kOk;
}

template <Dtype stored>
static Status decode_exact_row(const DecodeTask& task, const Curve& curve, int64_t row,
                               uint8_t* out) {
  const Remainder& remainder = task.remainder;
  const int64_t width = size_of(task.dtype);
  const int64_t first = remainder.first_block + row * blocks_of(task.layout);
  Block<stored> block;
  block.number = first;
  const Status status = for_groups(task.layout, task.planes, row, [&](const ExactGroup& group) {
    if (begins_block(group)) {
      const Status turned = turn_block(remainder, first, group.column, &block);
      if (turned != Status::kOk) return turned;
    }
    return decode_exact_group<stored>(task, curve, group, &block.reader,
                                      out + group.column * width);
  });
  const Status last = status == Status::kOk ? close_block(remainder, block) : status;
  if (last != Status::kOk) *task.bad_block = block.number;
  return last;
}

template <Dtype stored>
static Status decode_exact(const DecodeTask& task, int64_t begin, int64_t end) {
  const Curve curve = Curve::of(task.layout);
  const int64_t stride = task.stride * size_of(task.dtype);
  for (int64_t i = begin; i < end; i++) {
    const int64_t row = task.rows == nullptr ? i : task.rows[i];
    uint8_t* to = static_cast<uint8_t*>(task.out) + i * stride;
    const Status status = decode_exact_row<stored>(task, curve, row, to);
    if (status != Status::kOk) return status;
  }
  return Status::kOk;
}

static Status decode(const DecodeTask& task, int64_t begin, int64_t end) {
  if (task.remainder.payload == nullptr) return PHIQUANT_DECODE(task, begin, end);
  switch (task.remainder.stored) {
    case Dtype::kFloat32:
      return decode_exact<Dtype::kFloat32>(task, begin, end);
    case Dtype::kBFloat16:
      return decode_exact<Dtype::kBFloat16>(task, begin, end);
    default:
      return decode_exact<Dtype::kFloat16>(task, begin, end);
  }
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
