#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <utility>

#include "cut.h"
#include "phiquant/grid.h"

namespace phiquant::cpu {
namespace {

constexpr double kUlp = 0x1p-24;  // of fp32's rounding, relative
constexpr int kSamples = 32;      // of a segment, where its cubic is compared with the inverse

// The first segment's border from which 32 segments reach the largest t.
double offset_of(const Cut& cut) {
  double offset = 0x1p-4;
  while (16 * offset < offset + cut.top() * 1.0001) offset += 0x1p-7;
  return offset;
}

// How far fp32 arithmetic may put a position off at t: the reciprocal's, the products' and sums'
// rounding, and that of the edges themselves.
double rounding_of(const Cut& cut, const float* coefficient, double t, double offset) {
  const double q = inverse_of(t - offset, cut.bend);
  const double slope = cut.position_scale() / (1 - cut.bend + 3 * cut.bend * q * q);
  double sum = 0;
  for (int i = kScanDegree; i >= 0; i--) sum = sum * t + std::fabs(coefficient[i]);
  return kUlp * (8 * t * slope + 2 * kScanDegree * sum);
}

// Fits the segment [left, right] of the smaller scale; the larger one's t lies further left by up
// to the ratio of both. Returns the most by which a position is off, and a level there.
struct Doubt {
  double position, level;
};
Doubt fit(const Cut& cut, double left, double right, double offset, float out[kScanDegree + 1]) {
  const double from = offset + std::max(left - offset, 0.0) / cut.ratio();
  double polynomial[kScanDegree + 1];
  Doubt worst{0, 0};
  fit_inverse<kScanDegree>(from, right, 0, offset, cut.bend, polynomial);
  for (int i = 0; i <= kScanDegree; i++) {
    const double shift = i == 0 && cut.bits > 0 ? 0.5 : 0;
    out[i] = static_cast<float>(polynomial[i] * cut.position_scale() - shift);
  }
  for (int i = 0; i <= kSamples; i++) {
    const double t = from + (right - from) * i / kSamples;
    double position = 0;
    for (int j = kScanDegree; j >= 0; j--) position = position * t + out[j];
    if (cut.bits > 0) position += 0.5;
    const double q = inverse_of(t - offset, cut.bend), exact = q * cut.position_scale();
    const double off = 1.1 * std::fabs(position - exact) + rounding_of(cut, out, t, offset);
    const double slope = (1 - cut.bend + 3 * cut.bend * q * q) / cut.position_scale();
    worst = {std::max(worst.position, off), std::max(worst.level, 1.05 * off * slope)};
  }
  return worst;
}

// The change of a squared error, relative to scale 1, where a weight at most `doubt` sub-cells from
// `edge` is taken for one of its other side; levels in cells.
double slip(const Cut& cut, double edge, double doubt) {
  const double low = cut.value(edge - 0.5), high = cut.value(edge + 0.5);
  double worst = 0;
  for (const double side : {-1.0, 1.0}) {
    const double weight = cut.value(edge + side * doubt / (1 << cut.bits));
    worst = std::max(worst, std::fabs((high - low) * (high + low - 2 * weight)));
  }
  return 1.01 * worst;
}

// Of levels, by positions in sub-cells; less 1/2 with deviation.
void set_slope(const Cut& cut, ScanTable* table) {
  const double unit = cut.position_scale(), shift = cut.bits > 0 ? 0.5 : 0;
  const double line = (1 - cut.bend) / unit, cubic = cut.bend / (unit * unit * unit);
  table->slope[0] = static_cast<float>(line + 3 * cubic * shift * shift);
  table->slope[1] = static_cast<float>(6 * cubic * shift);
  table->slope[2] = static_cast<float>(3 * cubic);
}

// An error is estimated as the distance from the centre times the slope half-way, which leaves out
// the third derivative: at most B / (1 - B) / 16 in units of sub-cells. Beyond it, errors are off
// by no more than `doubt` (a level) each: |e| by a share s of itself and d, so that the sum S of n
// squares is off by (2 s + r) S + n d^2 / r and terms of higher order, for any r; r is best near
// d / |e|.
void set_deepest(const Cut& cut, double doubt, ScanTable* table) {
  const double unit = cut.position_scale();
  const double cubic = cut.bend / (1 - cut.bend) / (16 * unit * unit);
  const double middle = (1 - cut.bend + 3 * cut.bend * 0.35 * 0.35) / unit;
  const double split = std::min(doubt / (middle * 0.29), 0.25);
  table->doubts.deepest_share = static_cast<float>((2 * cubic + split) * (1 + 4 * cubic + split));
  table->doubts.deepest_slack = static_cast<float>(1.2 * doubt * doubt * (1 + 1 / split));
}

void set_index(const Cut& cut, double doubt, ScanTable* table) {
  double worst = 0;
  for (int k = 0; k <= cut.half; k++) worst = std::max(worst, slip(cut, k + 0.5, doubt));
  table->doubts.index_slip = static_cast<float>(worst);
  table->doubts.index_share = 0x1p-11f;
  table->doubts.index_slack = static_cast<float>(squared_slack(1.44 * kErrorRounding * 2, 0x1p-11));
  for (int i = 0; i < kSegments; i++) {
    table->level[i] = static_cast<float>(cut.value(cut.bits > 0 ? (i + 1) / 2 : i));
  }
  // A position near 0 may be estimated below it: half cell -1 is one of the cell around 0, too.
  if (cut.bits > 0) table->level[kSegments - 1] = 0;
  set_halves(cut, &table->halves);
}

// False if positions are too uncertain.
bool build(const Cut& cut, ScanTable* table) {
  const double offset = offset_of(cut);
  Doubt doubt{0, 0};
  for (int segment = 0; segment < kSegments; segment++) {
    // Segments begin where the 3 highest bits of the mantissa change, counted from `offset` on.
    const int place = static_cast<int>((offset * 16 - 1) * 8) + segment;
    const double octave = 0x1p-4 * (1 << place / 8);
    const double left = octave * (1 + place % 8 / 8.0);
    const float begin = static_cast<float>(left);
    uint32_t bits;
    std::memcpy(&bits, &begin, sizeof bits);
    float polynomial[kScanDegree + 1];
    const Doubt off = fit(cut, left, left + octave / 8, offset, polynomial);
    if (left < offset + cut.top() * 1.0001) {
      doubt = {std::max(doubt.position, off.position), std::max(doubt.level, off.level)};
    }
    for (int i = 0; i <= kScanDegree; i++) {
      table->coefficient[i][(bits >> kScanShift) % kSegments] = polynomial[i];
    }
  }
  table->offset = static_cast<float>(offset);
  const double cell = cut.bits > 4 ? 1 << cut.bits : 1;
  table->certain = static_cast<float>(0.5 - doubt.position / cell - 1e-6);
  set_slope(cut, table);
  set_index(cut, doubt.position, table);
  set_deepest(cut, doubt.level + kGuessFloor * 1.01 * cut.top() + kErrorRounding, table);
  return doubt.position < kScanDoubt;
}

}  // namespace

const ScanTable* scan_tables(const Layout& layout, bool shared) {
  static std::mutex mutex;
  static std::map<std::tuple<int, int, bool>, std::unique_ptr<ScanTable[]>> cache;
  // Half cells are found in one register look-up.
  if (2 * half_of(layout) + 1 > kSegments) return nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto key = std::tuple{layout.index_bits, layout.deviation_bits, shared};
  const auto found = cache.find(key);
  if (found != cache.end()) return found->second.get();
  auto tables = std::make_unique<ScanTable[]>(kBendCount);
  for (int bend = 0; bend < kBendCount; bend++) {
    if (!build({kBends[bend], half_of(layout), layout.deviation_bits, shared}, &tables[bend])) {
      tables.reset();
      break;
    }
  }
  return (cache[key] = std::move(tables)).get();
}

}  // namespace phiquant::cpu
