// How a warp goes through blocks of 512 columns of some rows, strip by strip: what it reads next is
// on its way while it decodes.
#pragma once

#include "exact_window.cuh"
#include "overlap.cuh"
#include "ring.cuh"

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

// `rows` of a strip, `sixteens` of weights a lane. `touches`: the next strip's remainders are
// brought to the L1 cache, where there is room for them.
template <class Table, int rows, int sixteens, bool touches>
struct Walk {
  static constexpr int kLanes = 32 / rows;  // of a row
  static constexpr int kLaneWeights = sixteens * kSixteen;
  static constexpr int kLaneOctets = kLaneWeights / kOctet;
  static constexpr int kColumns = kLanes * kLaneWeights;

  const StripShape& shape;
  const Planes& planes;
  const Remainder& remainder;
  const uint8_t* table;
  int lane;
  int last_octet;    // of the weight, that a lane may begin at
  uint32_t touched;  // 4 bytes of this lane's in shared memory, if any are

  static __device__ __forceinline__ int last_octet_of(int64_t rows_of_weight,
                                                      const StripShape& shape) {
    return static_cast<int>(rows_of_weight) * shape.octets - kLaneOctets;
  }

  // This lane's first octet of a row's block. Blocks of a row follow each other, so do strips.
  __device__ __forceinline__ int octet_of(int row, int block) const {
    return row * shape.octets + block * (kBlock / kOctet) + lane % kLanes * kLaneOctets;
  }
  // Octets beyond the weight, of its last row's last strip, are not used, nor are those of the next
  // row which other short strips read.
  __device__ __forceinline__ StripCodes<sixteens> load(int octet) const {
    return load_strip<sixteens>(planes, min(octet, last_octet), shape.shift);
  }
  __device__ __forceinline__ Begin begin_of(int row, int block) const {
    return load_begin(remainder, static_cast<uint32_t>(row * shape.blocks + block));
  }
  // What a lane reads first, to the L2 cache, which it may do while the kernel ahead ends.
  __device__ __forceinline__ void fetch_first(int row, int block) const {
    fetch_strip(planes, min(octet_of(row, block), last_octet), shape.shift);
    if (lane % kLanes == 0)
      fetch_begin(remainder, static_cast<uint32_t>(row * shape.blocks + block));
  }
  // A block's remainders are some 200 bytes, and the next one's follow: 512 bytes were slower.
  __device__ __forceinline__ void fetch(const Stream& stream) const {
    constexpr int kApart = 256 / kLanes;
    const auto* const from =
        reinterpret_cast<const uint8_t*>(stream.words) + lane % kLanes * kApart;
    if (from < remainder.payload + remainder.size) fetch_to_l2(from);
  }

  // 4 bytes of every 16 from where the stream is are copied to shared memory, where nobody reads
  // them: a load to a register would be waited for. Those of the strip before came long ago.
  __device__ __forceinline__ void touch(const Stream& stream) const {
    await_all_copies();
    const int at = stream.at + lane % kLanes * 128;
    if (at <= stream.limit)
      asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(touched),
                   "l"(stream.words + (at >> 5)));
  }

  // This lane's weights of the strip at `column`; `whole`: the row does not end within it.
  template <bool whole, class Place, class Worker>
  __device__ __forceinline__ void take(const Place& place, int column,
                                       const StripCodes<sixteens>& codes, Stream* stream,
                                       Worker& of) const {
    const int left = shape.columns - column - lane % kLanes * kLaneWeights;
    Sixteen found[sixteens];
    const int bits =
        find_strip<Table, whole, sixteens>(table, codes, shape.bias, lane, left, found);
    const int at = take_bits<kLanes>(bits, stream);
    if constexpr (touches) touch(*stream);
    auto asked = of.template before<whole>(column);
    uint32_t pairs[sixteens][2][4];
    add_remainders<sixteens>(found, stream->words, at, at + bits <= stream->limit, pairs);
    of.template strip<whole>(place, column, left, pairs, asked);
  }

  // `count` blocks from `place` on, of whose `row` this lane has the `block`; of.advance(&place)
  // turns to the next one. of.strip(place, column, left, pairs, of.before(column)) takes a lane's
  // weights of every strip, `left` columns from its first one on, and what it asked for before
  // their remainders came; of.ended(next, more) follows a block's last strip. All weights are NaN
  // where a scale word is none or remainders are outside of the payload, and in all strips of the
  // block that follow.
  template <class Place, class Worker>
  __device__ __forceinline__ void run(Place next, int count, Worker& of) const {
    if (count <= 0) return;
    Begin begin = begin_of(of.row_of(next), next.block);
    int octet = octet_of(of.row_of(next), next.block);
    StripCodes<sixteens> ahead = load(octet);
    for (; count > 0; count--) {
      const Place place = next;
      Stream stream = open_stream(remainder, begin);
      fetch(stream);
      if (count > 1) of.advance(&next);
      begin = begin_of(of.row_of(next), next.block);
      const int next_octet = octet_of(of.row_of(next), next.block);
      const int first = place.block * kBlock, last = min(first + kBlock, shape.columns);
#pragma unroll 1
      for (int column = first; column < last; column += kColumns) {
        const StripCodes<sixteens> codes = ahead;
        octet = column + kColumns < last ? octet + kColumns / kOctet : next_octet;
        ahead = load(octet);
        if (shape.columns - column >= kColumns) {
          take<true>(place, column, codes, &stream, of);
        } else {
          take<false>(place, column, codes, &stream, of);
        }
      }
      of.ended(place, next, count == 1);
    }
    if constexpr (touches) await_all_copies();
  }
};

}  // namespace phiquant::cuda
