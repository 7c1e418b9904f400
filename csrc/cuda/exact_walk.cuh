// How a warp goes through blocks of 512 columns of 8 rows each, strip by strip: what it reads next
// is on its way while it decodes.
#pragma once

#include "exact_strip.cuh"
#include "overlap.cuh"

namespace phiquant::cuda {

// A weight's sizes, as a walk needs them; it has less than 2^31 octets.
struct StripShape {
  int columns, octets, blocks;  // of a row
  int shift;                    // octets of a group, as a power of two
  uint32_t bias;                // (112 + exponent) << 23

  explicit StripShape(const Layout& layout)
      : columns(static_cast<int>(layout.columns)),
        octets(static_cast<int>(groups_of(layout) * layout.group_size / kOctet)),
        blocks(static_cast<int>(blocks_of(layout))),
        shift(layout.group_size == 64 ? 3 : 4),
        bias(static_cast<uint32_t>(112 + layout.exponent) << 23) {}
};

struct Walk {
  const StripShape& shape;
  const Planes& planes;
  const Remainder& remainder;
  int lane;

  __device__ __forceinline__ int octet_of(int row, int block) const {
    return row * shape.octets + block * (kBlock / kOctet) + (lane & 3);
  }
  __device__ __forceinline__ Begin begin_of(int row, int block) const {
    return load_begin(remainder, int64_t{row} * shape.blocks + block);
  }
  // A block's remainders are some 200 bytes, and the next one's follow.
  __device__ __forceinline__ void fetch(const Stream& stream) const {
    const auto* const from = reinterpret_cast<const uint8_t*>(stream.words) + (lane & 3) * 128;
    if (from < remainder.payload + remainder.size) fetch_to_l2(from);
  }

  // Blocks number `begin` to `end`; where(n) says the `row` and the `block` of the row that this
  // lane has of one. of.strip(place, column, left, pairs, of.before(column, left)) takes a lane's
  // weights of every strip, `left` columns from its first one on, and what it asked for before they
  // were decoded; of.ended(n) follows a block's last strip.
  template <class Table, class Worker>
  __device__ __forceinline__ void run(const uint8_t* table, int begin, int end, Worker& of) const {
    if (begin >= end) return;
    auto next_place = of.where(begin);
    Begin next_begin = begin_of(next_place.row, next_place.block);
    int octet = octet_of(next_place.row, next_place.block);
    StripCodes next = load_strip(planes, octet, shape.shift);
    for (int n = begin; n < end; n++) {
      const auto place = next_place;
      Stream stream = open_stream(remainder, next_begin);
      fetch(stream);
      next_place = of.where(min(n + 1, end - 1));
      next_begin = begin_of(next_place.row, next_place.block);
      const int next_octet = octet_of(next_place.row, next_place.block);
      const int first = place.block * kBlock, last = min(first + kBlock, shape.columns);
      for (int column = first; column < last; column += kStripColumns) {
        const StripCodes codes = next;
        octet = column + kStripColumns < last ? octet + kStripOctets : next_octet;
        next = load_strip(planes, octet, shape.shift);
        const int left = shape.columns - column - (lane & 3) * kOctet;
        const auto asked = of.before(column, left);
        uint32_t pairs[2][4];
        if (shape.columns - column >= kStripColumns) {
          decode_strip<Table, true>(table, codes, shape.bias, lane, left, &stream, pairs);
        } else {
          decode_strip<Table, false>(table, codes, shape.bias, lane, left, &stream, pairs);
        }
        of.strip(place, column, left, pairs, asked);
      }
      of.ended(n);
    }
  }
};

}  // namespace phiquant::cuda
