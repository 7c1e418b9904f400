#include "tables.h"

#include <cmath>
#include <map>
#include <mutex>
#include <utility>

#include "inverse.h"
#include "phiquant/grid.h"

namespace phiquant::cpu {
namespace {

// Positions on this curve are multiples of 1/8 that fp32 holds exactly, or sub-cell centres.
float golden_value(float position, int index_bits) {
  const float last = kLadder[1 << index_bits];
  const float doubled = std::fabs(position) * 2;
  const int low = static_cast<int>(doubled);
  const float left = kLadder[low] / last, right = kLadder[low + 1] / last;
  const float level = (right - left) * (doubled - static_cast<float>(low)) + left;
  return position < 0 ? -level : level;
}

float phi_value(float position, int index_bits, int bend) {
  const float half = static_cast<float>(1 << (index_bits - 1));
  const float line = kLines[bend] / half, cubic = kBends[bend] / (half * half * half);
  return (position * position * cubic + line) * position;
}

// place 0 is the lower edge of a sub-cell, 1/2 its centre.
float golden_at(int code, float place, int index_bits, int bits) {
  const float half = static_cast<float>(1 << (index_bits - 1));
  const float width = std::ldexp(1.0f, -bits);
  return golden_value((static_cast<float>(code) + place) * width - (half - 0.5f), index_bits);
}

const std::vector<Inverse>& unit_inverses() {
  static const std::vector<Inverse> tables = [] {
    std::vector<Inverse> result(kBendCount);
    for (int bend = 0; bend < kBendCount; bend++) {
      for (int segment = 0; segment < kSegments; segment++) {
        const double octave = kInverseOffset * std::exp2(segment / 4);
        const double left = octave * (1 + segment % 4 / 4.0);
        double polynomial[kDegree + 1];
        fit_inverse<kDegree>(left, left + octave / 4, left, kInverseOffset, kBends[bend],
                             polynomial);
        // A segment's place is what the low bits of exponent and mantissa of its floats say.
        const int place = (kFirstSegment + segment) % kSegments;
        for (int i = 0; i <= kDegree; i++) {
          result[bend].coefficient[i][place] = static_cast<float>(polynomial[i]);
        }
      }
    }
    return result;
  }();
  return tables;
}

// The inverses in units of sub-cells; whole cells are found by rounding, so 1/2 is added.
std::vector<Inverse> inverses(const Layout& layout) {
  std::vector<Inverse> tables = unit_inverses();
  const float scale = static_cast<float>(half_of(layout) << layout.deviation_bits);
  for (Inverse& table : tables) {
    for (auto& row : table.coefficient) {
      for (float& value : row) value *= scale;
    }
    if (layout.deviation_bits == 0) {
      for (float& value : table.coefficient[0]) value += 0.5f;
    }
  }
  return tables;
}

}  // namespace

const std::vector<float>& golden_levels(int index_bits, int bits) {
  static std::mutex mutex;
  static std::map<std::pair<int, int>, std::vector<float>> cache;
  const std::lock_guard<std::mutex> lock(mutex);
  std::vector<float>& levels = cache[{index_bits, bits}];
  if (levels.empty()) {
    levels.resize(size_t{1} << (index_bits + bits));
    for (size_t code = 0; code < levels.size(); code++) {
      levels[code] = golden_at(static_cast<int>(code), 0.5f, index_bits, bits);
    }
  }
  return levels;
}

const std::vector<float>& golden_edges(const Layout& layout) {
  static std::mutex mutex;
  static std::map<std::pair<int, int>, std::vector<float>> cache;
  const std::lock_guard<std::mutex> lock(mutex);
  std::vector<float>& edges = cache[{layout.index_bits, layout.deviation_bits}];
  if (edges.empty()) {
    edges.resize((size_t{1} << code_bits(layout)) + 1);
    for (size_t code = 0; code < edges.size(); code++) {
      edges[code] =
          golden_at(static_cast<int>(code), 0.0f, layout.index_bits, layout.deviation_bits);
    }
  }
  return edges;
}

const double* thirty_second_powers() {
  static const std::vector<double> powers = [] {
    std::vector<double> result(32);
    for (int i = 0; i < 32; i++) result[static_cast<size_t>(i)] = std::exp2(i / 32.0);
    return result;
  }();
  return powers.data();
}

SearchTables::SearchTables(const Layout& layout, bool priced) {
  const int bits = layout.index_bits;
  const float half = static_cast<float>(half_of(layout));
  const bool phi = layout.grid == GridName::kPhi;
  for (int bend = 0; bend < bend_count(layout); bend++) {
    for (const float end : {half + 0.125f, half - 0.5f}) {
      ends.push_back(phi ? phi_value(end, bits, bend) : golden_value(end, bits));
    }
  }
  if (phi) {
    inverse = inverses(layout);
    scan = scan_tables(layout, shares_segments(layout.deviation_bits, priced));
    return;
  }
  edges = golden_edges(layout).data();
  levels = golden_levels(bits, layout.deviation_bits).data();
  index_levels = golden_levels(bits, 0).data();
}

}  // namespace phiquant::cpu
