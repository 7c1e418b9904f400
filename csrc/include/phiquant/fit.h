// What the choice of a group's scale word minimises (docs/format.md, Encoding).
#pragma once

#include <cstdint>

namespace phiquant {

enum class Fit : int32_t { kJoint, kIndex, kDeviation };

}  // namespace phiquant
