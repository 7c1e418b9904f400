// Planes to weights, unpacked in registers (nibbles.h): the reference's operations in its order.
#pragma once

#include "decode.h"
#include "nibbles.h"

namespace phiquant::cpu::PHIQUANT_ISA {

struct DecodeTables {
  Curve curve;           // in cells
  Curve curve_of_codes;  // on the positions of codes
  ByteLevels levels;
};

// Weights of a chunk, by registers of codes. Positions in sixteenths and their coefficients differ
// from the reference's by powers of two that cancel, so every rounding is the same.
template <int deviation_bits>
PHIQUANT_INLINE void decode_chunk(const uint8_t* index, const uint8_t* deviation,
                                  const uint8_t table[4][16], vf line, vf cubic, vf scale,
                                  vf weights[kSteps][kCodeVectors]) {
  for (int part = 0; part < kCodeVectors; part++) {
    const bytes codes = load_codes<deviation_bits>(index, deviation, part);
    vf unpacked[kSteps];
    if (kByteTables && deviation_bits == 0) {
      look_up_levels(table, codes, unpacked);
    } else {
      find_positions<deviation_bits>(codes, unpacked);
      for (vf& p : unpacked) p = ((p * p) * cubic + line) * p;
    }
    for (int step = 0; step < kSteps; step++) weights[step][part] = unpacked[step] * scale;
  }
}

template <Dtype dtype, int deviation_bits>
PHIQUANT_INLINE void decode_whole_group(const DecodeTask& task, const DecodeTables& tables,
                                        int64_t group, float scale, int32_t bend, uint8_t* to) {
  constexpr int kSize = dtype == Dtype::kFloat32 ? 4 : 2;
  const int group_size = task.layout.group_size;
  const uint8_t* index = task.planes.index + group * (group_size / 2);
  const uint8_t* deviation =
      deviation_bits == 0 ? nullptr : task.planes.deviation + group * (group_size / 2);
  const vf line = splat(tables.curve_of_codes.line[bend]);
  const vf cubic = splat(tables.curve_of_codes.cubic[bend]);
  for (int at = 0; at < group_size; at += kChunk) {
    vf weights[kSteps][kCodeVectors];
    decode_chunk<deviation_bits>(index + at / 2, deviation_bits == 0 ? nullptr : deviation + at / 2,
                                 tables.levels.byte[bend], line, cubic, splat(scale), weights);
    for (int step = 0; step < kSteps; step++) {
      store_eight<dtype>(to + (at + step * 8) * kSize, weights[step]);
    }
  }
}

template <Dtype dtype, int deviation_bits>
static bool decode_nibble_row(const DecodeTask& task, const DecodeTables& tables, int64_t row,
                              uint8_t* out) {
  const Layout& layout = task.layout;
  const int64_t groups = groups_of(layout), whole = layout.columns / layout.group_size;
  Scales scales;
  bool good = true;
  for (int64_t start = 0; start < groups; start += kStretch) {
    const int64_t count = groups - start < kStretch ? groups - start : kStretch;
    good &= read_words(layout, task.planes.scale + row * groups + start, count, &scales);
    for (int64_t i = 0; i < count; i++) {
      const int64_t group = row * groups + start + i, column = (start + i) * layout.group_size;
      const float scale = scales.scale[i];
      const int32_t bend = scales.bend[i];
      // Only such scales make weights that fp32 or bf16 cannot hold.
      if (start + i < whole && __builtin_fabsf(scale) < 0x1p125f) {
        decode_whole_group<dtype, deviation_bits>(task, tables, group, scale, bend,
                                                  out + column * size_of(dtype));
        continue;
      }
      alignas(64) float weights[kLargestGroup];
      decode_group(layout, task.planes, nullptr, group, tables.curve, scale, bend, weights);
      store_group(layout, dtype, weights, column, out);
    }
  }
  return good;
}

typedef bool (*DecodeRow)(const DecodeTask&, const DecodeTables&, int64_t, uint8_t*);

template <Dtype dtype>
PHIQUANT_INLINE DecodeRow row_decoder(const Layout& layout) {
  return layout.deviation_bits == 0 ? decode_nibble_row<dtype, 0> : decode_nibble_row<dtype, 4>;
}

static Status decode_nibbles(const DecodeTask& task, int64_t begin, int64_t end) {
  if (!has_nibbles(task.layout)) return decode_lossy(task, begin, end);
  const DecodeRow decode_row =
      task.dtype == Dtype::kFloat32    ? row_decoder<Dtype::kFloat32>(task.layout)
      : task.dtype == Dtype::kBFloat16 ? row_decoder<Dtype::kBFloat16>(task.layout)
                                       : row_decoder<Dtype::kFloat16>(task.layout);
  const Curve curve = Curve::of(task.layout);
  DecodeTables tables{curve, curve, ByteLevels(curve)};
  to_positions_of_codes(task.layout.deviation_bits, &tables.curve_of_codes);
  const int64_t stride = task.stride * size_of(task.dtype);
  bool good = true;
  for (int64_t i = begin; i < end; i++) {
    const int64_t row = task.rows == nullptr ? i : task.rows[i];
    good &= decode_row(task, tables, row, static_cast<uint8_t*>(task.out) + i * stride);
  }
  return good ? Status::kOk : Status::kBadWord;
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
