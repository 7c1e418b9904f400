// The inverse of y = (1 - B) q + B q^3, and polynomials through points of it; for building tables.
#pragma once

#include <cmath>
#include <numbers>

namespace phiquant::cpu {

inline double inverse_of(double level, double bend) {
  double q = 1.5;  // above every root, so that Newton descends
  for (int i = 0; i < 60; i++) {
    const double step = ((1 - bend) * q + bend * q * q * q - level) / (1 - bend + 3 * bend * q * q);
    q -= step;
    if (std::fabs(step) < 1e-15) break;
  }
  return q;
}

// The polynomial of y + `offset` through the inverse at the Chebyshev nodes of [from, to], in
// powers of (y + offset - origin): Newton's divided differences, expanded.
template <int degree>
void fit_inverse(double from, double to, double origin, double offset, double bend,
                 double out[degree + 1]) {
  double node[degree + 1], difference[degree + 1];
  for (int i = 0; i <= degree; i++) {
    const double turn = std::cos((i + 0.5) * std::numbers::pi / (degree + 1));
    node[i] = from - origin + (to - from) * (1 - turn) / 2;
    difference[i] = inverse_of(origin + node[i] - offset, bend);
  }
  for (int order = 1; order <= degree; order++) {
    for (int i = degree; i >= order; i--) {
      difference[i] = (difference[i] - difference[i - 1]) / (node[i] - node[i - order]);
    }
  }
  for (int i = 0; i <= degree; i++) out[i] = 0;
  for (int order = degree; order >= 0; order--) {
    for (int i = degree; i > 0; i--) out[i] = out[i - 1] - node[order] * out[i];
    out[0] = difference[order] - node[order] * out[0];
  }
}

}  // namespace phiquant::cpu
