// What the CPU kernels are given. Raw pointers only; the binding has checked every extent, so the
// kernels check contents alone: scale words and weights.
#pragma once

#include <cstdint>

#include "phiquant/fit.h"
#include "phiquant/layout.h"

namespace phiquant::cpu {

enum class Dtype : int32_t { kFloat32, kBFloat16, kFloat16 };

PHIQUANT_INLINE int64_t size_of(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

// Contiguous planes of [rows, columns]; a plane that the layout does not have is null.
struct Planes {
  const uint8_t* index;
  const uint8_t* deviation;
  const uint8_t* deviation_low;
  const int16_t* scale;
};

// The remainder plane; payload is null where it is not read. Offsets and starts have the right
// length, their values are as they were stored.
struct Remainder {
  const uint8_t* payload;
  int64_t size;  // bytes of payload, kPadding included
  const uint16_t* offsets;
  const int64_t* starts;
  int64_t blocks;       // of all rows
  int64_t first_block;  // of the first row of the task's planes
  bool consecutive;     // blocks follow each other, 32 a start; else each has its own
  Dtype stored;         // the dtype whose floats are told apart
  const float* edges;   // golden grid: lower edges of all codes and the last one's upper; else null
};

// out[i, columns] = weight[rows ? rows[i] : i]; rows are within the planes.
struct DecodeTask {
  Layout layout;
  Planes planes;
  const int64_t* rows;
  const float* levels;  // golden grid: the level of every code; else null
  Dtype dtype;
  void* out;
  int64_t stride;  // from one row of out to the next, in weights
  Remainder remainder;
  int64_t* bad_block;  // set where the status is about a block
};

// The remainders of weight[rows, columns], whose lossy planes are given. `measure` fills the bytes
// of every block and the exceptions of every row; `write` needs both summed up.
struct RemainderTask {
  Layout layout;
  Planes planes;
  Dtype stored;
  const float* edges;  // as in Remainder
  const void* weight;
  int64_t* sizes;         // [blocks]: bytes
  int64_t* astray;        // [rows]: how many weights are no sub-cell's
  const int64_t* begins;  // [blocks]: first bytes
  uint8_t* payload;
  const int64_t* first_exception;  // [rows]
  int64_t* exceptions;             // [n, 2]: places and fp32 bits
};

// The inverse of y = (1 - B) q + B q^3 as a quartic in each of 32 segments, four an octave of
// t = y + 2^-7: even steps in bits of t are near even near zero and geometric far out, as the grid
// is. Coefficients are in powers of (t - the segment's left end), lowest first, the segments of one
// side by side so that it is one register look-up. A segment's place is (bits of t >> 21) % 32.
inline constexpr int kSegments = 32;
inline constexpr float kInverseOffset = 0x1p-7f;
inline constexpr int kSegmentShift = 21;
inline constexpr int kFirstSegment = 120 << 2;
// No inverse is further off than this times K (in positions): the quartic is within 7e-8, the rest
// is its fp32 arithmetic and the rounding of edges.
inline constexpr float kInverseError = 1e-6f;
inline constexpr int kDegree = 4;
struct Inverse {
  alignas(64) float coefficient[kDegree + 1][kSegments];
};

// What the first pass over the candidates of one bend reads (scan.h). A cubic of t = y + offset in
// each of 32 segments, eight an octave of t, gives a position in sub-cells, less 1/2 with
// deviation.
inline constexpr int kScanDegree = 3;
inline constexpr int kScanShift = 20;
inline constexpr double kScanDoubt = 0.1;  // sub-cells; a position is never less certain
// Whether both signs' scales use one segment's cubic. Bits of remainders are known only where
// sub-cells are certain, and errors in 256ths of a cell take a position as exact, which two make
// likelier.
PHIQUANT_INLINE constexpr bool shares_segments(int deviation_bits, bool priced) {
  return !priced && deviation_bits < 8;
}
// By how much sums of squared errors may be off.
struct SumDoubts {
  float index_share;  // of indices: by which share of themselves,
  float index_slack;  // by how much more a weight,
  float index_slip;   // and by how much where a weight may have been taken for one of the next cell
  float deepest_share;  // the same of the deepest tier
  float deepest_slack;
};
// The same pass in 16 bits (scan_halves.cpp): in each segment of the numbers that stand for levels
// there is at most one edge of cells, and one line gives positions of sub-cells. Segments are even,
// or 16 fine ones below 2^13 and 14 coarse ones: number `min(n >> 9, 15) + (n >> 12)`.
inline constexpr int kEvenShift = 11, kFineShift = 9, kCoarseShift = 12, kFineSegments = 16;
struct HalvesTable {
  alignas(64) uint16_t edge[kSegments];  // less kHalvesDoubt / 2; out of reach where there is none
  alignas(64) uint16_t below[kSegments], above[kSegments];  // levels, as numbers
  // Halfway between both levels, and half of what is between: 0 where there is but one level.
  alignas(64) uint16_t middle[kSegments], apart[kSegments];
  // The line, in 65536ths of a sub-cell: its bits are the signed distance from a centre. Then half
  // a sub-cell in fractions of a number, and by how many of them an error may be too large.
  alignas(64) uint16_t rate[kSegments], start[kSegments], reach[kSegments], doubt[kSegments];
  float unit;            // what level 1 is as a number; 0 if there is no such table
  float square;          // what level 1 is as a square of numbers, inverted,
  float deepest_square;  // and as a square of their fractions
  bool geometric;        // segments
  SumDoubts doubts;      // of the deepest tier none: its sums are never too large
};
inline constexpr int kHalvesDoubt = 4;  // an edge is in doubt for so many numbers, and one
struct ScanTable {
  alignas(64) float coefficient[kScanDegree + 1][kSegments];  // in powers of t, lowest first
  alignas(64) float level[kSegments];  // index levels, by half cells; by cells without deviation
  float slope[3];                      // of levels at a position, in powers of it, lowest first
  float offset;                        // no octave of t begins twice
  float certain;  // a position no further than this from a (sub-)cell's centre is in it
  SumDoubts doubts;
  HalvesTable halves;
};

// Magnitudes below this part of a group's largest are taken for it where positions are estimated:
// near 0 they are all in one sub-cell, and the estimate must not be at its edge.
inline constexpr float kGuessFloor = 2 * kInverseError;

struct EncodeTask {
  Layout layout;
  Fit fit;
  Dtype dtype;
  const void* weight;         // [rows, columns]
  const float* importance;    // [groups * group_size], 0 at padding, near 1 in a group; or null
  const Inverse* inverse;     // phi grid: one a bend, in units of sub-cells
  const ScanTable* scan;      // phi grid: one a bend; or null
  const float* levels;        // golden grid: the level of every code,
  const float* index_levels;  // of every index,
  const float* edges;         // and the lower edge of every code
  const float* ends;          // f(K + 1/8) and f(K - 1/2) of every bend
  const double* prices;       // what n / 32 remainder bits multiply the score by; null if nothing
  int32_t price;              // of a remainder bit, in 32nds
  bool exact;                 // weights that are not finite are left to the exceptions
  uint8_t* index;
  uint8_t* deviation;
  uint8_t* deviation_low;
  int16_t* scale;
};

// out[m, out_features] = x[m, columns] . weight[out_features, columns] + bias, for few rows m.
struct FusedTask {
  Layout layout;
  Planes planes;
  const float* levels;
  const float* x;     // [m, groups * group_size], as `prepare` left it
  const float* bias;  // [out_features] or null
  Dtype dtype;
  void* out;
  int64_t m;
  int64_t out_features;
};

// The same with x in a form of a kernel's own; it and the result are bf16.
struct CodeTask {
  Layout layout;
  Planes planes;
  const uint8_t* x;      // as CodeKernels::prepare left it
  const float* factors;  // [m]: what the rows of int8 are to be multiplied with; null for bf16
  const float* bias;     // [out_features] or null
  void* out;             // [m, out_features]
  int64_t m;
  int64_t out_features;
};

// The same for rows [row, row + rows) of the weight, which are decoded already.
struct DecodedTask {
  const void* weight;  // the first of them; room for DecodedKernels::rows, all of it finite or NaN
  int64_t stride;      // from one to the next, in weights; the pad of `columns` to it is 0
  const uint8_t* x;    // as DecodedKernels::prepare left it
  const float* bias;   // [out_features] or null
  Dtype dtype;
  void* out;  // [m, out_features]
  int64_t m;
  int64_t columns;
  int64_t row, rows;
  int64_t out_features;
};

enum class Status : int32_t { kOk, kBadWord, kNotFinite, kOutside, kApart, kBadRemainder };

// How rows of x meet decoded weights.
struct DecodedKernels {
  Dtype weight;                      // dtype that they are decoded to
  int64_t (*rows)(int64_t columns);  // of the weight that a call takes at most
  bool (*takes)(Dtype x, int64_t m);
  int64_t (*x_bytes)(int64_t columns, int64_t m);
  void (*prepare)(int64_t columns, Dtype dtype, const void* x, int64_t m, uint8_t* to);
  void (*multiply)(const DecodedTask& task);
};

// How rows of bf16 meet codes in a form of their own.
struct CodeKernels {
  // Whether `multiply` reads such planes with so many rows of x, in int8 or as they are, and is the
  // faster way.
  bool (*takes)(const Layout& layout, int64_t m, bool int8);
  // Bytes of prepared rows, and the rows; where factors are given, of int8 with a factor each.
  int64_t (*x_bytes)(const Layout& layout, int64_t m, bool int8);
  // False if that form cannot hold x, which is never so of int8.
  bool (*prepare)(const Layout& layout, const void* x, int64_t m, uint8_t* to, float* factors);
  Status (*multiply)(const CodeTask& task, int64_t begin, int64_t end);
};

// The kernels of one instruction set. Ranges are rows of the result of decode, rows of the weight
// in encode and fused; a range writes nothing outside of its rows. Callers keep denormals (mode.h).
struct Kernels {
  const char* name;
  Status (*decode)(const DecodeTask& task, int64_t begin, int64_t end);
  Status (*encode)(const EncodeTask& task, int64_t begin, int64_t end);
  Status (*measure)(const RemainderTask& task, int64_t begin, int64_t end);
  Status (*write)(const RemainderTask& task, int64_t begin, int64_t end);
  // x[m, columns] of dtype to fp32 in the order in which `fused` unpacks weights, padded with 0.
  void (*prepare)(const Layout& layout, Dtype dtype, const void* x, int64_t m, float* prepared);
  Status (*fused)(const FusedTask& task, int64_t begin, int64_t end);
  // Up to how many rows of x `fused` is worth it; above, decode blocks and multiply them.
  int64_t (*fused_rows)(const Layout& layout);
  const DecodedKernels* decoded;
  const CodeKernels* integers;  // null where there are no dot products of integers
  // Null where there is no matrix unit, which takes bf16 alone.
  const DecodedKernels* decoded_tiles;
  const CodeKernels* tiles;
};

}  // namespace phiquant::cpu
