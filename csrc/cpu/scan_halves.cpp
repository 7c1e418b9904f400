// The tables of scan_halves_avx512.h and scan_least_avx512.h.
#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "cut.h"

namespace phiquant::cpu {
namespace {

// Numbers of 16 bits stand for levels: a size, whose largest is 65535, times a factor, the high 16
// bits. Both are rounded, 0.51 in 65536 each, and the product's low bits are lost, 0.5: a number is
// off by no more than this from 65535/65536 of `unit` times the level, less 1/2.
constexpr double kNumberDoubt = 1.54;

int segment_of(int number, bool geometric) {
  if (!geometric) return number >> kEvenShift;
  return std::min(number >> kFineShift, kFineSegments - 1) + (number >> kCoarseShift);
}

// The tables of a unit. False if an edge of cells is too near to a segment's border, or to another.
// An edge out of reach is 20000 numbers above all of its segment, which is less than 2^15.
bool fill_halves(const Cut& cut, double unit, bool geometric, HalvesTable* out) {
  const auto number_of = [&](double level) { return level * unit * (65535.0 / 65536) - 0.5; };
  const auto level_of = [&](int cell) {
    return static_cast<uint16_t>(std::lround(number_of(cut.value(cell))));
  };
  int cell = 0, segment = -1;
  for (int number = 0; number < 65536; number++) {
    const int here = segment_of(number, geometric);
    if (here != segment) {
      out->edge[here] = static_cast<uint16_t>(number + 20000);
      out->below[here] = out->above[here] = level_of(cell);
      segment = here;
    }
    const double edge = number_of(cut.value(cell + 0.5));
    if (cell == cut.half || number < std::ceil(edge - kNumberDoubt)) continue;
    const bool second = out->above[here] != out->below[here];
    if (second || segment_of(std::max(number - 4, 0), geometric) != here ||
        segment_of(std::min(number + 8, 65535), geometric) != here)
      return false;
    out->edge[here] = static_cast<uint16_t>(number);
    out->above[here] = level_of(++cell);
  }
  out->unit = static_cast<float>(unit);
  out->geometric = geometric;
  return true;
}

// How far an indexed level may be from a weight at most: at an edge, or at the end of the grid.
double furthest(const Cut& cut) {
  double most = cut.top() - cut.value(cut.half);
  for (int cell = 0; cell < cut.half; cell++) {
    const double edge = cut.value(cell + 0.5);
    most = std::max({most, cut.value(cell + 1) - edge, edge - cut.value(cell)});
  }
  return most;
}

// The change of a squared error where a weight so near to an edge is taken for one of the next
// cell.
double slip_of(const Cut& cut, double doubt) {
  double worst = 0;
  for (int cell = 0; cell < cut.half; cell++) {
    const double low = cut.value(cell), high = cut.value(cell + 1);
    for (const double side : {-1.0, 1.0}) {
      const double weight = cut.value(cell + 0.5) + side * doubt;
      worst = std::max(worst, std::fabs((high - low) * (high + low - 2 * weight)));
    }
  }
  return 1.01 * worst;
}

// Numbers of levels, and what they are off by.
struct Numbers {
  double unit;
  double doubt() const { return kNumberDoubt + kErrorRounding * unit; }
  double of(double level) const { return level * unit * (65535.0 / 65536) - 0.5; }
  double level(double number) const { return (number + 0.5) / (unit * (65535.0 / 65536)); }
};

// The line of one segment's positions, in 65536ths of a sub-cell from a centre; its slope is whole.
struct Line {
  int rate;
  double start, spread;  // what it lacks is spread about 0
};

Line line_of(const Cut& cut, const Numbers& numbers, int first, int last, int rate) {
  constexpr int kSamples = 16;
  double least = 1e30, most = -1e30;
  for (int i = 0; i <= kSamples; i++) {
    const double number = first + (last - first) * (i / double{kSamples});
    const double level = std::max(numbers.level(number), 0.0);
    const double position = inverse_of(level, cut.bend) * cut.position_scale() - 0.5;
    const double off = 65536 * position - rate * number;
    least = std::min(least, off);
    most = std::max(most, off);
  }
  return {rate, (least + most) / 2, most - least};
}

Line best_line(const Cut& cut, const Numbers& numbers, int first, int last) {
  const auto at = [&](double number) {
    return inverse_of(std::max(numbers.level(number), 0.0), cut.bend) * cut.position_scale();
  };
  const double slope = 65536 * (at(last) - at(first)) / (last - first);
  const int whole = static_cast<int>(slope);
  const Line flat = line_of(cut, numbers, first, last, whole);
  const Line steep = line_of(cut, numbers, first, last, whole + 1);
  return flat.spread < steep.spread ? flat : steep;
}

// Fractions of a number, so that eight squares of a lane fit 32 bits.
constexpr double kMostReach = 16000;

double set_lines(const Cut& cut, const Numbers& numbers, HalvesTable* out) {
  double reach[kSegments] = {}, most = 0;
  for (int segment = 0, first = 0, last; first < 65536; segment++, first = last + 1) {
    last = first;
    while (last < 65535 && segment_of(last + 1, out->geometric) == segment) last++;
    const Line line = best_line(cut, numbers, first, last);
    out->rate[segment] = static_cast<uint16_t>(line.rate);
    out->start[segment] = static_cast<uint16_t>(std::lround(line.start));
    reach[segment] = 32768.0 / line.rate;
    most = std::max(most, reach[segment]);
  }
  const double fraction = kMostReach / most;
  for (int i = 0; i < kSegments; i++) {
    out->reach[i] = static_cast<uint16_t>(std::lround(reach[i] * fraction));
  }
  return fraction;
}

// As the kernel computes it, in fractions of a number.
int estimated_error(const HalvesTable& table, int number) {
  const int segment = segment_of(number, table.geometric);
  const int away = static_cast<int16_t>(number * table.rate[segment] + table.start[segment]);
  return std::abs(((away * table.reach[segment] >> 14) + 1) >> 1);
}

// How far weights that may have a number are from the centres of their sub-cells, at least; `cell`
// is a sub-cell that is not above them.
double least_error(const Cut& cut, const Numbers& numbers, int number, int* cell) {
  const auto at = [&](double place) { return numbers.of(cut.value(place / (1 << cut.bits))); };
  const double low = std::max(number - numbers.doubt(), at(0)), high = number + numbers.doubt();
  while (at(*cell + 1) <= low) (*cell)++;
  double least = 1e30;
  for (int here = *cell; at(here) < high; here++) {
    const double from = std::max(low, at(here)) - at(here + 0.5);
    const double to = std::min(high, at(here + 1)) - at(here + 0.5);
    least = std::min(least, from < 0 && to > 0 ? 0 : std::min(std::fabs(from), std::fabs(to)));
  }
  return least;
}

void set_deepest(const Cut& cut, HalvesTable* table) {
  const Numbers numbers{table->unit};
  const double fraction = set_lines(cut, numbers, table);
  const double level = 65535.0 / 65536 * table->unit;  // 1, as a number
  table->deepest_square = static_cast<float>(std::pow(fraction * level, -2));
  const int end = std::min(static_cast<int>(numbers.of(cut.top()) + 2), 65535);
  double doubt[kSegments] = {};
  for (int number = 0, cell = 0; number <= end; number++) {
    double& most = doubt[segment_of(number, table->geometric)];
    const double least = least_error(cut, numbers, number, &cell) * fraction;
    most = std::max(most, estimated_error(*table, number) - least);
  }
  for (int i = 0; i < kSegments; i++) {
    table->doubt[i] = static_cast<uint16_t>(std::ceil(doubt[i] + 0.01));
  }
}

}  // namespace

void set_halves(const Cut& cut, HalvesTable* out) {
  constexpr double kShare = 0x1p-10;
  constexpr int kTries = 64;
  // With a price on remainders, or 8 bits, the first pass is another.
  if (cut.bits > 0 && !cut.shared) return;
  double unit = 65535 / (cut.top() * 1.0001);
  // Eight squares of a lane have to fit 32 bits.
  if (furthest(cut) * unit > 16000) return;
  for (int i = 0; i < kTries && out->unit == 0; i++, unit *= 0.9995) {
    if (!fill_halves(cut, unit, false, out)) fill_halves(cut, unit, true, out);
  }
  if (out->unit == 0) return;
  unit = out->unit;
  out->square = static_cast<float>(std::pow(65536 / (65535 * unit), 2));
  // A level as a number is rounded, too.
  const double level_doubt = cut.bits > 0 ? 1.02 : 0.51;
  const double doubt = (kNumberDoubt + level_doubt) / unit + kErrorRounding;
  out->doubts.index_slip = static_cast<float>(slip_of(cut, (kHalvesDoubt + 2) / unit));
  out->doubts.index_share = kShare;
  out->doubts.index_slack = static_cast<float>(squared_slack(doubt, kShare));
  if (cut.bits == 0) return;
  for (int i = 0; i < kSegments; i++) {
    // Level 0 may be number -1, so that only differences count.
    out->apart[i] = static_cast<uint16_t>(out->above[i] - out->below[i]) / 2;
    out->middle[i] = static_cast<uint16_t>(out->below[i] + out->apart[i]);
  }
  out->doubts.index_slip = 0;
  set_deepest(cut, out);
}

}  // namespace phiquant::cpu
