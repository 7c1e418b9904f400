// Exact bf16 weights, a strip at a time: one or more rows side by side, all lanes of a warp, 16
// weights a lane.
#pragma once

#include "edge_table.cuh"
#include "octets.cuh"

namespace phiquant::cuda {

inline constexpr int kLaneWeights = 16;

// What a lane reads of the lossy planes: nibbles of two octets, and their group's scale word.
struct StripCodes {
  uint32_t index[2], deviation[2], word;
};

// Of two octets, the first an even one. They are read once: past the L1 cache.
__device__ __forceinline__ void load_nibbles(const uint8_t* plane, int octet,
                                             uint32_t (&nibbles)[2]) {
  asm("ld.global.nc.L1::no_allocate.L2::128B.v2.b32 {%0, %1}, [%2];"
      : "=r"(nibbles[0]), "=r"(nibbles[1])
      : "l"(reinterpret_cast<const uint32_t*>(plane) + octet));
}

// `octet`: of the plane; `shift`: octets of a group, as a power of two, at least 3.
__device__ __forceinline__ StripCodes load_strip(const Planes& planes, int octet, int shift) {
  StripCodes codes;
  load_nibbles(planes.index, octet, codes.index);
  load_nibbles(planes.deviation, octet, codes.deviation);
  codes.word = __ldg(planes.scale + (octet >> shift));
  return codes;
}

// The remainders of a row's block, as far as they are not read yet; the same in the row's lanes.
struct Stream {
  const uint32_t* words;  // aligned; the first may begin before the payload, in its allocation
  int at;                 // the bit, from there on, at which the next strip's begin
  int limit;  // the bit at which the last one's end at the latest; -1: not in the payload
};

inline constexpr int kMostBlockBits = 8192;           // at most 15 a weight
inline constexpr int kNoBlock = kMostBlockBits + 64;  // bits of a lane whose scale word is none

// Where a block begins, as the planes say.
struct Begin {
  int64_t start;
  uint32_t offset;
};

__device__ __forceinline__ Begin load_begin(const Remainder& remainder, uint32_t block) {
  const uint32_t start = remainder.consecutive ? block / kBlocksPerStart : block;
  return {__ldg(remainder.starts + start), __ldg(remainder.offsets + block)};
}

__device__ __forceinline__ Stream open_stream(const Remainder& remainder, const Begin& begin) {
  const int64_t from = begin.start + begin.offset, left = remainder.size - kPadding - from;
  const bool inside = begin.start >= 0 && begin.start <= remainder.size && left >= 0;
  const auto address = reinterpret_cast<uintptr_t>(remainder.payload + (inside ? from : 0));
  const int at = static_cast<int>(address & 3) * 8;
  const int bits = left < kMostBlockBits / 8 ? static_cast<int>(left) * 8 : kMostBlockBits;
  return {reinterpret_cast<const uint32_t*>(address & ~uintptr_t{3}), at, inside ? at + bits : -1};
}

// A lane's 16 weights: their sub-cells' first floats as fp32 bits with the sign, 16 minus the bits
// of their remainders, and where these end, counted from where their four weights' begin.
struct Sixteen {
  uint32_t first[2][kOctet];
  int lack[2][kOctet];
  int end[2][kOctet];

  __device__ __forceinline__ int quad(int half, int number) const {
    return end[half][4 * number + 3];
  }
};

// Whole codes of an octet's nibbles, of its even weights and of its odd ones, a byte each.
__device__ __forceinline__ uint32_t joined_nibbles(uint32_t high, uint32_t low) {
  uint32_t codes;  // high & mask | low & ~mask
  asm("lop3.b32 %0, %1, %2, %3, 0xE4;" : "=r"(codes) : "r"(high), "r"(low), "r"(0xF0F0F0F0));
  return codes;
}

// Leading zeros of what is not 0, in one instruction.
__device__ __forceinline__ int zeros_before(int bits) {
  int zeros;
  asm("bfind.shiftamt.u32 %0, %1;" : "=r"(zeros) : "r"(bits));
  return zeros;
}

// Where the scale is a good one. `left`: weights from the first on, 16 and more if `whole`; what
// lies beyond has no remainder.
template <class Table, bool whole>
__device__ __forceinline__ void find_sixteen(const uint8_t* table, const StripCodes& codes,
                                             float scale, uint32_t part, int left, Sixteen* of) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const uint32_t even = joined_nibbles(codes.index[half] << 4, codes.deviation[half]);
    const uint32_t odd = joined_nibbles(codes.index[half], codes.deviation[half] >> 4);
    int end = 0;
#pragma unroll
    for (int i = 0; i < kOctet; i++) {
      const Edges edges = Table::at(table, i & 1 ? odd : even, i / 2, part);
      const int inner = __float_as_int(__fmul_rn(edges.inner, scale));
      const int outer = __float_as_int(__fmul_rn(edges.outer, scale));
      const int first = (inner + 0xFFFF) & static_cast<int>(0xFFFF0000);
      int lack = zeros_before(max(outer - first, 0xFFFF));  // (spare << 16) + 0xFFFF is as long
      if (!whole && i >= left - kOctet * half) lack = 16;
      end = (i == 4 ? 0 : end) + 16 - lack;
      of->first[half][i] = static_cast<uint32_t>(first);
      of->lack[half][i] = lack;
      of->end[half][i] = end;
    }
  }
}

// Adds what the lane `step` before has, if it is among this one's `lanes`.
template <int lanes>
__device__ __forceinline__ int plus_before(int sum, int step) {
  asm volatile(
      "{.reg .pred there; .reg .b32 before;\n"
      "shfl.sync.up.b32 before|there, %0, %1, %2, 0xFFFFFFFF;\n"
      "@there add.s32 %0, %0, before;}"
      : "+r"(sum)
      : "r"(step), "n"((32 - lanes) << 8));
  return sum;
}

// The bit at which this lane's remainders begin; the stream is then at the next strip's. `lanes`:
// of a row.
template <int lanes>
__device__ __forceinline__ int take_bits(int bits, Stream* stream) {
  int sum = bits;
#pragma unroll
  for (int step = 1; step < lanes; step *= 2) sum = plus_before<lanes>(sum, step);
  const int at = stream->at + sum - bits;
  stream->at += __shfl_sync(~0u, sum, lanes - 1, lanes);
  return at;
}

__device__ __forceinline__ uint32_t load_word(const uint32_t* from) {
  uint32_t word;
  asm("ld.global.nc.L2::128B.b32 %0, [%1];" : "=r"(word) : "l"(from));
  return word;
}

// 64 bits of the stream.
struct Window {
  uint32_t low, high;
};

// Those from bit `at` on, and those `first` bits later, of which `bits` are read in all, at most
// 96, and less than 64 of the first. No word beyond these and the payload's padding is touched.
__device__ __forceinline__ void open_windows(const uint32_t* words, int at, int first, int bits,
                                             Window (&windows)[2]) {
  const uint32_t* from = words + (at >> 5);
  const int end = (at & 31) + bits;
  uint32_t of[4] = {load_word(from), load_word(from + 1), 0, 0};
  if (end > 64) of[2] = load_word(from + 2);
  if (end > 96) of[3] = load_word(from + 3);
  const uint32_t low = __funnelshift_r(of[0], of[1], at);
  const uint32_t middle = __funnelshift_r(of[1], of[2], at);
  const uint32_t high = __funnelshift_r(of[2], of[3], at);
  windows[0] = {low, middle};
  const bool later = first >= 32;
  const uint32_t second = later ? high : middle;
  windows[1] = {__funnelshift_r(later ? middle : low, second, first),
                __funnelshift_r(second, later ? 0 : high, first)};
}

// The weights of an octet, in pairs. A remainder is shifted up to the end of a word and down again,
// so that what is left of its neighbours lies below the weight's 16 bits.
__device__ __forceinline__ void add_remainders(const Sixteen& of, int half, const Window& window,
                                               uint32_t* pairs) {
  uint32_t weights[kOctet];
#pragma unroll
  for (int i = 0; i < kOctet; i++) {
    const uint32_t bits =
        i < 4 ? window.low : __funnelshift_rc(window.low, window.high, of.quad(half, 0));
    weights[i] =
        (__funnelshift_rc(0, bits, of.end[half][i]) >> of.lack[half][i]) + of.first[half][i];
  }
#pragma unroll
  for (int i = 0; i < 4; i++) pairs[i] = __byte_perm(weights[2 * i], weights[2 * i + 1], 0x7632);
}

// One weight's, wherever it is.
static __device__ __noinline__ uint32_t far_remainder(const uint32_t* words, int at, int lack) {
  const uint32_t* from = words + (at >> 5);
  return __funnelshift_r(__ldg(from), __ldg(from + 1), at) & 0xFFFFu >> lack;
}

// The same where four weights have 32 bits and more, which takes two sub-cells at zero among them,
// or where `all` are to be read again, since there are too many bits, or none `inside` of the
// payload: then they are NaN.
__device__ __forceinline__ void add_far_remainders(const Sixteen& of, int half,
                                                   const uint32_t* words, int at, bool all,
                                                   bool inside, uint32_t* pairs) {
#pragma unroll
  for (int four = 0; four < 2; four++) {
    all |= of.quad(half, four) >= 32;  // then what follows in the octet was not found either
    if (!all) continue;
    uint32_t weights[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int lack = of.lack[half][4 * four + i];
      const int begin =
          at + of.end[half][4 * four + i] + (four == 0 ? 0 : of.quad(half, 0)) - 16 + lack;
      weights[i] =
          of.first[half][4 * four + i] + (far_remainder(words, inside ? begin : 0, lack) << 16);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const uint32_t pair = __byte_perm(weights[2 * i], weights[2 * i + 1], 0x7632);
      pairs[2 * four + i] = inside ? pair : 0x7FFF7FFF;
    }
  }
}

// A lane's 16 weights of a strip, in pairs, the first one low; all are NaN where the scale word is
// none or remainders are outside of the payload, and in all strips of the block that follow.
// `bias`: (112 + exponent) << 23. `left`: as above. `lanes`: of a row.
template <class Table, int lanes, bool whole>
__device__ __forceinline__ void decode_strip(const uint8_t* table, const StripCodes& codes,
                                             uint32_t bias, int lane, int left, Stream* stream,
                                             uint32_t (&pairs)[2][4]) {
  const uint32_t sign = codes.word << 16 & 0x80000000u;
  const float scale = __uint_as_float(((codes.word & 0x7FF8) << kWordShift) + bias | sign);
  const bool good = (codes.word & 0x7C00) - 0x400 <= 0x7400;
  Sixteen of;
  find_sixteen<Table, whole>(table, codes, scale, Table::part(codes.word & kBendMask, lane), left,
                             &of);
  const int first = of.quad(0, 0) + of.quad(0, 1), second = of.quad(1, 0) + of.quad(1, 1);
  const int bits = good ? first + second : kNoBlock;
  int at = take_bits<lanes>(bits, stream);
  const bool inside = at + bits <= stream->limit, all = !inside || bits > 96 || first >= 64;
  if (!inside) at = 0;
  Window windows[2];
  open_windows(stream->words, at, first, all ? 0 : bits, windows);
#pragma unroll
  for (int half = 0; half < 2; half++) add_remainders(of, half, windows[half], pairs[half]);
  const int longest = of.quad(0, 0) | of.quad(0, 1) | of.quad(1, 0) | of.quad(1, 1);
  if (__builtin_expect(all || longest >= 32, false)) {
    add_far_remainders(of, 0, stream->words, at, all, inside, pairs[0]);
    add_far_remainders(of, 1, stream->words, at + first, all, inside, pairs[1]);
  }
}

}  // namespace phiquant::cuda
