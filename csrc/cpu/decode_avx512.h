// Planes to weights, unpacked in registers: the reference's operations in its order.
#pragma once

#include "decode.h"
#include "positions_avx512.h"

namespace phiquant::cpu::PHIQUANT_ISA {

// bf16 in the upper halves of lanes, to nearest even.
PHIQUANT_INLINE vi rounded_bfloat16s(vf value) {
  const vi bits = (vi)value;
  return bits + 0x7FFF + ((bits >> 16) & 1);
}

// 32 weights below the dtype's largest value (bf16, fp32) or clamped to it (fp16).
template <Dtype dtype>
PHIQUANT_INLINE void store_pair(uint8_t* to, vf first, vf second) {
  if (dtype == Dtype::kFloat32) {
    store(to, first);
    store(to + 64, second);
  } else if (dtype == Dtype::kBFloat16) {
    alignas(64) static constexpr uint16_t kOdd[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                      23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                      45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    store(to, _mm512_permutex2var_epi16((__m512i)rounded_bfloat16s(first), _mm512_load_si512(kOdd),
                                        (__m512i)rounded_bfloat16s(second)));
  } else {
    uint16_t* halves = reinterpret_cast<uint16_t*>(to);
    floats_to_halves(halves, saturate(first, 65504.0f));
    floats_to_halves(halves + kLanes, saturate(second, 65504.0f));
  }
}

template <Dtype dtype, int deviation_bits, int group_size>
PHIQUANT_INLINE void fast_decode_group(const PlanesAt<deviation_bits>& group, const float* levels,
                                       float line, float cubic, float scale, uint8_t* to) {
  constexpr int kChunk = group_size < 64 ? group_size : 64;
  constexpr int kSize = dtype == Dtype::kFloat32 ? 4 : 2;
  constexpr float kUnit = 1.0f / (1 << deviation_bits);
  for (int start = 0; start < group_size; start += kChunk) {
    const PlanesAt<deviation_bits> planes = group.after(start);
    const auto store_all = [&](const auto& weight) {
      for (int step = 0; step < kChunk / 16; step += 2) {
        store_pair<dtype>(to + (start + step * 16) * kSize, weight(step), weight(step + 1));
      }
    };
    if constexpr (deviation_bits == 0) {
      const __m512i codes = join_codes<0, kChunk>(planes.index, nullptr);
      store_all([&](int step) { return look_up(load<vf>(levels), codes, step) * scale; });
    } else {
      const Positions<deviation_bits, kChunk> positions(planes);
      store_all([&](int step) {
        const vf p = positions.at(step) * kUnit;
        return ((p * p) * cubic + line) * p * scale;
      });
    }
  }
}

template <Dtype dtype, int deviation_bits, int group_size>
static bool fast_decode_row(const DecodeTask& task, const Curve& curve, const IndexLevels& table,
                            int64_t row, uint8_t* out) {
  const Layout& layout = task.layout;
  const int64_t groups = groups_of(layout), whole = layout.columns / group_size;
  Scales scales;
  bool good = true;
  for (int64_t start = 0; start < groups; start += kStretch) {
    const int64_t count = groups - start < kStretch ? groups - start : kStretch;
    good &= read_words(layout, task.planes.scale + row * groups + start, count, &scales);
    for (int64_t i = 0; i < count; i++) {
      const int64_t group = row * groups + start + i, column = (start + i) * group_size;
      const float scale = scales.scale[i];
      const int32_t bend = scales.bend[i];
      if (start + i >= whole || __builtin_fabsf(scale) >= 0x1p125f) {
        alignas(64) float weights[kLargestGroup];
        decode_group(layout, task.planes, nullptr, group, curve, scale, bend, weights);
        store_group(layout, dtype, weights, column, out);
        continue;
      }
      fast_decode_group<dtype, deviation_bits, group_size>(
          PlanesAt<deviation_bits>(task.planes, group * group_size), table.level[bend],
          curve.line[bend], curve.cubic[bend], scale, out + column * size_of(dtype));
    }
  }
  return good;
}

typedef bool (*DecodeRow)(const DecodeTask&, const Curve&, const IndexLevels&, int64_t, uint8_t*);

template <Dtype dtype, int deviation_bits>
PHIQUANT_INLINE DecodeRow row_decoder(int group_size) {
  return group_size == 32   ? fast_decode_row<dtype, deviation_bits, 32>
         : group_size == 64 ? fast_decode_row<dtype, deviation_bits, 64>
                            : fast_decode_row<dtype, deviation_bits, 128>;
}

template <Dtype dtype>
PHIQUANT_INLINE DecodeRow row_decoder(const Layout& layout) {
  switch (layout.deviation_bits) {
    case 0:
      return row_decoder<dtype, 0>(layout.group_size);
    case 2:
      return row_decoder<dtype, 2>(layout.group_size);
    case 4:
      return row_decoder<dtype, 4>(layout.group_size);
    default:
      return row_decoder<dtype, 8>(layout.group_size);
  }
}

static Status fast_decode(const DecodeTask& task, int64_t begin, int64_t end) {
  if (!has_nibble_indices(task.layout)) return decode_lossy(task, begin, end);
  const DecodeRow decode_row =
      task.dtype == Dtype::kFloat32    ? row_decoder<Dtype::kFloat32>(task.layout)
      : task.dtype == Dtype::kBFloat16 ? row_decoder<Dtype::kBFloat16>(task.layout)
                                       : row_decoder<Dtype::kFloat16>(task.layout);
  const Curve curve = Curve::of(task.layout);
  const IndexLevels levels(curve);
  const int64_t stride = task.stride * size_of(task.dtype);
  bool good = true;
  for (int64_t i = begin; i < end; i++) {
    const int64_t row = task.rows == nullptr ? i : task.rows[i];
    good &= decode_row(task, curve, levels, row, static_cast<uint8_t*>(task.out) + i * stride);
  }
  return good ? Status::kOk : Status::kBadWord;
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
