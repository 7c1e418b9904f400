// Planes to weights: the reference's sequence of fp32 operations (phiquant/codec/decode.py), a
// group at a time. Nothing here may be contracted or reordered.
#pragma once

#include "codes.h"
#include "words.h"

namespace phiquant::cpu::PHIQUANT_ISA {

struct Codes {
  alignas(64) uint8_t index[kLargestGroup];
  alignas(64) uint8_t high[kLargestGroup];
  alignas(64) uint8_t low[kLargestGroup];
};

// The codes of group `group`, counted through all rows.
PHIQUANT_INLINE void read_codes(const Layout& layout, const Planes& planes, int64_t group,
                                Codes* codes) {
  const int size = layout.group_size, high = high_bits(layout), low = low_bits(layout);
  unpack(layout.index_bits, planes.index + group * group_bytes(layout, layout.index_bits), size,
         codes->index);
  if (high != 0) {
    unpack(high, planes.deviation + group * group_bytes(layout, high), size, codes->high);
  }
  if (low != 0) {
    unpack(low, planes.deviation_low + group * group_bytes(layout, low), size, codes->low);
  }
}

// Positions are sums of multiples of 2^-9 below 2^7: every order gives the exact one.
template <int deviation_bits>
PHIQUANT_INLINE vf positions(const Codes& codes, int at, float first) {
  vf position = to_float(widen(codes.index + at)) + first;
  if (deviation_bits == 2) position += to_float(widen(codes.high + at)) * 0.25f;
  if (deviation_bits >= 4) position += to_float(widen(codes.high + at)) * 0.0625f;
  if (deviation_bits == 8) position += to_float(widen(codes.low + at)) * 0.00390625f;
  return position;
}

template <int deviation_bits>
PHIQUANT_INLINE void phi_levels(const Layout& layout, const Codes& codes, float line, float cubic,
                                float scale, float* out) {
  const float half_cell = deviation_bits == 0 ? 0.5f : 0.5f / (1 << deviation_bits);
  const float first = half_cell + 0.5f - static_cast<float>(half_of(layout));
  for (int at = 0; at < layout.group_size; at += kLanes) {
    const vf p = positions<deviation_bits>(codes, at, first);
    store(out + at, ((p * p) * cubic + line) * p * scale);
  }
}

PHIQUANT_INLINE void golden_weights(const Layout& layout, const Codes& codes, const float* levels,
                                    float scale, float* out) {
  const int high = high_bits(layout), low = low_bits(layout);
  for (int i = 0; i < layout.group_size; i++) {
    int code = codes.index[i];
    if (high != 0) code = code << high | codes.high[i];
    if (low != 0) code = code << low | codes.low[i];
    out[i] = levels[code] * scale;
  }
}

// One whole group, padding included, in fp32; magnitudes may overflow to infinity.
PHIQUANT_INLINE void decode_group(const Layout& layout, const Planes& planes, const float* levels,
                                  int64_t group, const Curve& curve, float scale, int32_t bend,
                                  float* out) {
  Codes codes;
  read_codes(layout, planes, group, &codes);
  if (layout.grid == GridName::kGolden) return golden_weights(layout, codes, levels, scale, out);
  const float line = curve.line[bend], cubic = curve.cubic[bend];
  switch (layout.deviation_bits) {
    case 0:
      return phi_levels<0>(layout, codes, line, cubic, scale, out);
    case 2:
      return phi_levels<2>(layout, codes, line, cubic, scale, out);
    case 4:
      return phi_levels<4>(layout, codes, line, cubic, scale, out);
    default:
      return phi_levels<8>(layout, codes, line, cubic, scale, out);
  }
}

PHIQUANT_INLINE vf saturate(vf value, float largest) {
  return minimum(maximum(value, splat(-largest)), splat(largest));
}

// To bf16 by integers: nearest even, denormals kept.
PHIQUANT_INLINE void floats_to_bfloat16s(uint16_t* to, vf value) {
  const vi bits = (vi)value;
  store(to, narrow((vi)((vu)(bits + 0x7FFF + ((vi)((vu)bits >> 16) & 1)) >> 16)));
}

// Rounds fp32 weights (whole vectors) to the dtype.
PHIQUANT_INLINE void round_weights(Dtype dtype, const float* from, int count, void* to) {
  for (int at = 0; at < count; at += kLanes) {
    const vf value = load<vf>(from + at);
    if (dtype == Dtype::kFloat32) {
      store(static_cast<float*>(to) + at, saturate(value, kLargestFloat));
    } else if (dtype == Dtype::kBFloat16) {
      floats_to_bfloat16s(static_cast<uint16_t*>(to) + at, saturate(value, 0x1.fep127f));
    } else {
      floats_to_halves(static_cast<uint16_t*>(to) + at, saturate(value, 65504.0f));
    }
  }
}

// The last group of a row may be short: only its weights are written.
PHIQUANT_INLINE void store_group(const Layout& layout, Dtype dtype, const float* weights,
                                 int64_t column, uint8_t* row) {
  uint8_t* to = row + column * size_of(dtype);
  if (column + layout.group_size <= layout.columns) {
    return round_weights(dtype, weights, layout.group_size, to);
  }
  alignas(64) uint8_t whole[kLargestGroup * 4];
  round_weights(dtype, weights, layout.group_size, whole);
  std::memcpy(to, whole, static_cast<size_t>((layout.columns - column) * size_of(dtype)));
}

static bool decode_row(const DecodeTask& task, const Curve& curve, int64_t row, uint8_t* out) {
  const Layout& layout = task.layout;
  const int64_t groups = groups_of(layout);
  alignas(64) float weights[kLargestGroup];
  Scales scales;
  bool good = true;
  for (int64_t start = 0; start < groups; start += kStretch) {
    const int64_t count = groups - start < kStretch ? groups - start : kStretch;
    good &= read_words(layout, task.planes.scale + row * groups + start, count, &scales);
    for (int64_t i = 0; i < count; i++) {
      decode_group(layout, task.planes, task.levels, row * groups + start + i, curve,
                   scales.scale[i], scales.bend[i], weights);
      store_group(layout, task.dtype, weights, (start + i) * layout.group_size, out);
    }
  }
  return good;
}

static Status decode_lossy(const DecodeTask& task, int64_t begin, int64_t end) {
  const Curve curve = Curve::of(task.layout);
  const int64_t stride = task.stride * size_of(task.dtype);
  bool good = true;
  for (int64_t i = begin; i < end; i++) {
    const int64_t row = task.rows == nullptr ? i : task.rows[i];
    good &= decode_row(task, curve, row, static_cast<uint8_t*>(task.out) + i * stride);
  }
  return good ? Status::kOk : Status::kBadWord;
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
