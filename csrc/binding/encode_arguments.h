// Arguments of torch.ops.phiquant.encode on every device.
#pragma once

#include "arguments.h"
#include "phiquant/fit.h"

namespace phiquant {

inline Fit fit_of(const std::string& fit, bool exact) {
  if (fit == "joint") return Fit::kJoint;
  if (fit == "index") return Fit::kIndex;
  if (fit == "deviation") return Fit::kDeviation;
  if (fit != "exact") {
    fail("fit must be one of ('joint', 'index', 'deviation', 'exact'), got '" + fit + "'");
  }
  if (!exact) fail("fit='exact' minimises the remainder, which needs exact=True");
  return Fit::kJoint;
}

// The price of a remainder bit in 32nds, as PRICES of the reference.
inline int32_t price_of(const std::string& fit) { return fit == "exact" ? 8 : 1; }

inline void check_stored(const Tensor& weight, const Layout& layout, const OptionalDtype& stored) {
  if (stored.has_value() && layout.deviation_bits == 0) {
    fail("deviation_bits must be 2, 4 or 8 for an exact weight, got 0");
  }
  if (stored.has_value() && weight.scalar_type() != *stored) {
    fail("weight: expected " + dtype_text(*stored) + ", as stored, got " +
         dtype_text(weight.scalar_type()));
  }
}

// The lossy planes of a weight whose remainder is to be encoded.
inline CheckedPlanes check_lossy_of(const Tensor& weight, const Layout& layout,
                                    const OptionalDtype& stored, const GivenPlanes& given) {
  if (!stored.has_value()) {
    fail("stored_dtype: expected " + dtype_text(weight.scalar_type()) +
         ", as the weight, got None");
  }
  check_stored(weight, layout, stored);
  const CheckedPlanes planes = check_planes(given, layout, std::nullopt);
  const Shape leading = leading_of("weight", weight);
  if (planes.leading != leading) {
    fail("weight.scale: expected leading dimensions " + tuple_text(leading) + ", got " +
         tuple_text(planes.leading));
  }
  return planes;
}

[[noreturn]] inline void fail_not_finite() {
  fail("weight: holds a NaN or an infinity, expected finite values");
}

}  // namespace phiquant
