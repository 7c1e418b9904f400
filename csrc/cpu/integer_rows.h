// Rows of x in integers (integer_x.h) against codes, with VNNI: the ways of few rows of x.
//
// Instructions for 64 weights and one row of x: 8 for indices in int16 (a widening load, a shift,
// two look-ups, two dot products, two for the scale), 20 with deviations (four to join the codes,
// 12 for positions, their cubes and dot products, four for the scale), 5 for int8.
#pragma once

#include "apart.h"
#include "integer_x.h"

namespace phiquant::cpu::PHIQUANT_ISA {

inline constexpr int kMost = 4;  // rows of x that codes meet at once

// How many bytes ahead of its dot products a core asks for codes: prefetchers alone, which end at a
// page's border, left it waiting for a fifth of its time.
inline constexpr int64_t kCodesAhead = 2048;

PHIQUANT_INLINE void ask_for(const uint8_t* codes) {
  _mm_prefetch(reinterpret_cast<const char*>(codes + kCodesAhead), _MM_HINT_T0);
}

inline constexpr int32_t kTableBytes = 64;  // a bend's levels

// Levels of 14 bits and a sign; of int8, moved up.
struct IntegerLevels {
  static constexpr float kUnit = 16383;
  alignas(64) int16_t words[kBendCount][32];  // 16 levels, twice: look-ups take 5 bits
  alignas(64) uint8_t bytes[kBendCount][64];  // four times: look-ups take 6
  static_assert(sizeof words[0] == kTableBytes && sizeof bytes[0] == kTableBytes);

  PHIQUANT_MEMBER explicit IntegerLevels(const Curve& curve) {
    const auto round = [](float value) {
      return static_cast<int>(value < 0 ? value - 0.5f : value + 0.5f);
    };
    for (int bend = 0; bend < kBendCount; bend++) {
      for (int i = 0; i < 64; i++) {
        const float level = level_at(curve, bend, static_cast<float>(i % 16 - 7));
        if (i < 32) words[bend][i] = static_cast<int16_t>(round(level * kUnit));
        bytes[bend][i] = static_cast<uint8_t>(round(level * kInt8Levels) + kUp);
      }
    }
  }
};

// Positions are integers, too: 120 times the doubled distance of a code from zero, 239 / 2. The
// cube of one is moved right by 30 bits.
inline constexpr float kPositionUnit = 3840;  // a cell
inline constexpr float kCubeUnit = kPositionUnit * kPositionUnit * 0x1p-30f * kPositionUnit;

// What the sums of a group are to be multiplied with (`cube` with deviations alone), and where the
// table of its levels is, in bytes from the first.
struct GroupFactors {
  alignas(64) float line[kStretch];
  alignas(64) float cube[kStretch];
  alignas(64) uint32_t table[kStretch];

  // False if there is a bad word. `of_x`: the factor of every group of x, or null. Nothing is
  // copied by a length that is not known: a `rep movs` takes longer than all the rest.
  template <Operand operand>
  PHIQUANT_MEMBER bool set(const Layout& layout, const Curve& curve, const int16_t* words,
                           const float* of_x, int64_t count) {
    WordReader reader(layout);
    const __m512 lines = _mm512_castps256_ps512(_mm256_load_ps(curve.line));
    const __m512 cubes = _mm512_castps256_ps512(_mm256_load_ps(curve.cubic));
    for (int64_t i = 0; i < count; i += kLanes) {
      vf scale;
      vi bend;
      reader.read(words + i, count - i, &scale, &bend);
      if (operand != Operand::kInt8) scale *= load<vf>(of_x + i);
      if (operand == Operand::kIndex) scale *= 1 / IntegerLevels::kUnit;
      if (operand == Operand::kPosition) {
        const __m512i bends = (__m512i)bend;
        store(cube + i, (vf)_mm512_permutexvar_ps(bends, cubes) * (1 / kCubeUnit) * scale);
        scale *= (vf)_mm512_permutexvar_ps(bends, lines) * (1 / kPositionUnit);
      }
      store(line + i, scale);
      if (operand != Operand::kPosition) store(table + i, bend * kTableBytes);
    }
    return reader.good();
  }
};

// A piece of 64 weights of one row, which any number of rows of x meet. `table`: where the levels
// of its bend are, in bytes from the first.
template <Operand operand>
struct Piece;

template <>
struct Piece<Operand::kIndex> {
  __m512i level[2];

  PHIQUANT_MEMBER Piece(const uint8_t* index, const uint8_t*, const IntegerLevels& levels,
                        uint32_t place) {
    const __m512i table = _mm512_load_si512((const uint8_t*)levels.words + place);
    const __m512i words = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)index));
    level[0] = _mm512_permutexvar_epi16(words, table);
    level[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4), table);
  }
  PHIQUANT_MEMBER vf add_to(vf sum, const uint8_t* x, float factor, float) const {
    __m512i dots = _mm512_dpwssd_epi32(_mm512_setzero_si512(), level[0], _mm512_load_si512(x));
    dots = _mm512_dpwssd_epi32(dots, level[1], _mm512_load_si512(x + kPiece));
    return multiply_add(to_float((vi)dots), splat(factor), sum);
  }
};

template <>
struct Piece<Operand::kPosition> {
  __m512i position[2], cube[2];

  PHIQUANT_MEMBER Piece(const uint8_t* index, const uint8_t* deviation, const IntegerLevels&,
                        uint32_t) {
    // 240 (code - 128) + 255 * 8 = 120 (2 code - 239)
    const __m512i factors = _mm512_set1_epi16(static_cast<int16_t>(255 << 8 | 240));
    const __m512i eight = _mm512_set1_epi8(8);
    const __m512i codes =
        _mm512_xor_si512(join_codes<4, kPiece>(index, deviation), _mm512_set1_epi8(-128));
    position[0] = _mm512_maddubs_epi16(factors, _mm512_unpacklo_epi8(codes, eight));
    position[1] = _mm512_maddubs_epi16(factors, _mm512_unpackhi_epi8(codes, eight));
    for (int i = 0; i < 2; i++) {
      const __m512i square = _mm512_mulhrs_epi16(position[i], position[i]);
      cube[i] = _mm512_mulhrs_epi16(square, position[i]);
    }
  }
  PHIQUANT_MEMBER vf add_to(vf sum, const uint8_t* x, float line, float cubic) const {
    __m512i lines = _mm512_setzero_si512(), cubes = _mm512_setzero_si512();
    for (int i = 0; i < 2; i++) {
      const __m512i factor = _mm512_load_si512(x + i * kPiece);
      lines = _mm512_dpwssd_epi32(lines, position[i], factor);
      cubes = _mm512_dpwssd_epi32(cubes, cube[i], factor);
    }
    sum = multiply_add(to_float((vi)lines), splat(line), sum);
    return multiply_add(to_float((vi)cubes), splat(cubic), sum);
  }
};

template <>
struct Piece<Operand::kInt8> {
  __m512i level;

  PHIQUANT_MEMBER Piece(const uint8_t* index, const uint8_t*, const IntegerLevels& levels,
                        uint32_t place) {
    const __m512i upper_half = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4);
    const __m512i codes = _mm512_srlv_epi32(load_chunk<kPiece>(index), upper_half);
    level = _mm512_permutexvar_epi8(codes, _mm512_load_si512(levels.bytes[0] + place));
  }
  PHIQUANT_MEMBER vf add_to(vf sum, const uint8_t* x, float factor, float) const {
    const __m512i dots = _mm512_dpbusd_epi32(_mm512_setzero_si512(), level, _mm512_load_si512(x));
    return multiply_add(to_float((vi)dots), splat(factor), sum);
  }
};

struct IntegerTables {
  Curve curve;
  IntegerLevels levels;

  PHIQUANT_MEMBER explicit IntegerTables(const Layout& layout)
      : curve(Curve::of(layout)), levels(curve) {}
};

// `rows` rows of the weight from `row` on, `step` apart, against `m` rows of x from `first` on:
// one of the two is 1.
template <Operand operand, int group_size, int rows, int m>
class IntegerProduct {
  static constexpr bool kInt8 = operand == Operand::kInt8;
  static constexpr int kBytes = group_size / 2, kXBytes = group_size * (kInt8 ? 1 : 2);

 public:
  PHIQUANT_MEMBER IntegerProduct(const CodeTask& task, const IntegerTables& tables, int64_t first)
      : task_(task),
        tables_(tables),
        groups_(groups_of(task.layout)),
        stride_(integer_bytes(task.layout, kInt8)) {
    x_ = task.x + first * stride_;
    of_x_ = group_floats(task.layout, kInt8, x_);
  }

  // False if there is a bad word.
  PHIQUANT_MEMBER bool run(int64_t row, int64_t step, vf (*sums)[m]) {
    bool good = true;
    for (int r = 0; r < rows; r++) {
      for (int i = 0; i < m; i++) sums[r][i] = vf{};
    }
    for (int64_t start = 0; start < groups_; start += kStretch) {
      const int64_t count = groups_ - start < kStretch ? groups_ - start : kStretch;
      for (int r = 0; r < rows; r++) {
        const int64_t before = (row + r * step) * groups_ + start;
        index_[r] = task_.planes.index + before * kBytes;
        if (operand == Operand::kPosition) {
          deviation_[r] = task_.planes.deviation + before * kBytes;
        }
        good &= factors_[r].template set<operand>(
            task_.layout, tables_.curve, task_.planes.scale + before, of_x_ + start, count);
        if (kInt8) add_raised(factors_[r].line, start, count, sums[r]);
      }
      add_groups(x_ + start * kXBytes, count, sums);
    }
    return good;
  }

 private:
  PHIQUANT_MEMBER void add_groups(const uint8_t* x, int64_t count, vf (*sums)[m]) {
    vf total[rows][m];
    std::memcpy(total, sums, sizeof total);
    for (int64_t i = 0; i < count; i++, x += kXBytes) {
      for (int at = 0; at < group_size; at += kPiece) {
        for (int r = 0; r < rows; r++) {
          const int64_t place = i * kBytes + at / 2;
          const uint8_t* deviation =
              operand == Operand::kPosition ? deviation_[r] + place : nullptr;
          if (place % 64 == 0) {  // a line of the cache
            ask_for(index_[r] + place);
            if (operand == Operand::kPosition) ask_for(deviation);
          }
          const Piece<operand> piece(index_[r] + place, deviation, tables_.levels,
                                     operand == Operand::kPosition ? 0 : factors_[r].table[i]);
          for (int j = 0; j < m; j++) {
            total[r][j] = piece.add_to(total[r][j], x + j * stride_ + at * (kInt8 ? 1 : 2),
                                       factors_[r].line[i], factors_[r].cube[i]);
          }
        }
      }
    }
    std::memcpy(sums, total, sizeof total);
  }

  // What levels were moved up by, times x, which is 0 beyond the last group.
  PHIQUANT_MEMBER void add_raised(const float* scales, int64_t start, int64_t count, vf* sums) {
    for (int j = 0; j < m; j++) {
      const auto* raised = (const float*)((const uint8_t*)of_x_ + j * stride_) + start;
      for (int64_t i = 0; i < count; i += kLanes) {
        sums[j] = multiply_add(load<vf>(scales + i), load<vf>(raised + i), sums[j]);
      }
    }
  }

  const CodeTask& task_;
  const IntegerTables& tables_;
  int64_t groups_, stride_;
  const float* of_x_;  // a factor for every group, or what levels moved up add
  const uint8_t *x_, *index_[rows], *deviation_[rows];
  GroupFactors factors_[rows];
};

}  // namespace phiquant::cpu::PHIQUANT_ISA
