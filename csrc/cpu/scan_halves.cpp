// The tables of scan_halves_avx512.h.
#include <algorithm>
#include <cmath>

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

}  // namespace

void set_halves(const Cut& cut, ScanTable* table) {
  constexpr double kShare = 0x1p-10;
  constexpr int kTries = 64;
  HalvesTable& halves = table->halves;
  double unit = 65535 / (cut.top() * 1.0001);
  // Eight squares of a lane have to fit 32 bits.
  if (furthest(cut) * unit > 16000) return;
  for (int i = 0; i < kTries && halves.unit == 0; i++, unit *= 0.9995) {
    if (!fill_halves(cut, unit, false, &halves)) fill_halves(cut, unit, true, &halves);
  }
  if (halves.unit == 0) return;
  unit = halves.unit;
  halves.square = static_cast<float>(std::pow(65536 / (65535 * unit), 2));
  // A level as a number is rounded, too.
  const double doubt = (kNumberDoubt + 0.51) / unit + kErrorRounding;
  const float slip = static_cast<float>(slip_of(cut, (kHalvesDoubt + 2) / unit));
  table->index_slip = std::max(table->index_slip, slip);
  table->index_share = kShare;
  table->index_slack = static_cast<float>(squared_slack(doubt, kShare));
}

}  // namespace phiquant::cpu
