#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <utility>

#include "inverse.h"
#include "phiquant/grid.h"
#include "tables.h"

namespace phiquant::cpu {
namespace {

constexpr double kUlp = 0x1p-24;  // of fp32's rounding, relative
constexpr int kSamples = 32;      // of a segment, where its cubic is compared with the inverse

// One bend's curve on cells, and how a layout cuts them.
struct Cut {
  double bend;
  int half, bits;
  bool shared;  // by the scales of both signs

  double position_scale() const { return half << bits; }
  double value(double cell) const {
    const double q = cell / half;
    return (1 - bend) * q + bend * q * q * q;
  }
  double top() const { return value(half + 0.125); }
  // The most by which one sign's scale exceeds the other's: rounded to 7 mantissa bits.
  double ratio() const { return shared ? top() / value(half - 0.5) * 1.008 : 1; }
};

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
// to the ratio of both. Returns the most by which a position is off.
double fit(const Cut& cut, double left, double right, double offset, float out[kScanDegree + 1]) {
  const double from = offset + std::max(left - offset, 0.0) / cut.ratio();
  double polynomial[kScanDegree + 1], worst = 0;
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
    const double exact = inverse_of(t - offset, cut.bend) * cut.position_scale();
    worst = std::max(worst, 1.1 * std::fabs(position - exact) + rounding_of(cut, out, t, offset));
  }
  return worst;
}

// The change of a squared error, relative to scale 1, where a weight at most `doubt` sub-cells from
// `edge` is taken for one of its other side; levels in cells.
double slip(const Cut& cut, double edge, double below, double above, double doubt) {
  const double low = cut.value(below), high = cut.value(above);
  double worst = 0;
  for (const double side : {-1.0, 1.0}) {
    const double weight = cut.value(edge + side * doubt / (1 << cut.bits));
    worst = std::max(worst, std::fabs((high - low) * (high + low - 2 * weight)));
  }
  return 1.01 * worst;
}

void set_slips(const Cut& cut, double doubt, ScanTable* table) {
  const double width = 1.0 / (1 << cut.bits), first = cut.bits == 0 ? 0.5 : 0;
  double deepest = 0, index = 0;
  for (int i = 0; i <= (cut.half << cut.bits) + (1 << cut.bits); i++) {
    const double edge = first + i * width;
    deepest = std::max(deepest, slip(cut, edge, edge - width / 2, edge + width / 2, doubt));
  }
  for (int k = 0; k <= cut.half; k++) index = std::max(index, slip(cut, k + 0.5, k, k + 1, doubt));
  table->deepest_slip = static_cast<float>(deepest);
  table->index_slip = static_cast<float>(index);
}

void set_levels(const Cut& cut, ScanTable* table) {
  for (int i = 0; i < kSegments; i++) {
    table->level[i] = static_cast<float>(cut.value((i + 1) / 2));
  }
  const double unit = cut.position_scale(), shift = cut.bits > 0 ? 0.5 : 0;
  const double line = (1 - cut.bend) / unit, cubic = cut.bend / (unit * unit * unit);
  table->at_centre[0] = static_cast<float>((cubic * shift * shift + line) * shift);
  table->at_centre[1] = static_cast<float>(3 * cubic * shift * shift + line);
  table->at_centre[2] = static_cast<float>(3 * cubic * shift);
  table->at_centre[3] = static_cast<float>(cubic);
}

// False if positions are too uncertain.
bool build(const Cut& cut, ScanTable* table) {
  const double offset = offset_of(cut);
  double doubt = 0;
  for (int segment = 0; segment < kSegments; segment++) {
    // Segments begin where the 3 highest bits of the mantissa change, counted from `offset` on.
    const int place = static_cast<int>((offset * 16 - 1) * 8) + segment;
    const double octave = 0x1p-4 * (1 << place / 8);
    const double left = octave * (1 + place % 8 / 8.0);
    const float begin = static_cast<float>(left);
    uint32_t bits;
    std::memcpy(&bits, &begin, sizeof bits);
    float polynomial[kScanDegree + 1];
    const double off = fit(cut, left, left + octave / 8, offset, polynomial);
    if (left < offset + cut.top() * 1.0001) doubt = std::max(doubt, off);
    for (int i = 0; i <= kScanDegree; i++) {
      table->coefficient[i][(bits >> kScanShift) % kSegments] = polynomial[i];
    }
  }
  table->offset = static_cast<float>(offset);
  table->certain = static_cast<float>(0.5 - doubt);
  set_levels(cut, table);
  set_slips(cut, doubt, table);
  return doubt < kScanDoubt;
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
