// Weights whose products with one x a compiled graph makes in one call: a list for each plane.
#pragma once

#include <vector>

#include "packed.h"

namespace phiquant {

using Tensors = std::vector<Tensor>;

// Weights of one layout. Lists of planes that it does not have are empty; that of biases may be.
// Exact weights with exceptions are in no list.
struct WeightLists {
  const Tensors &index, &deviation, &deviation_low, &scale, &remainder, &offsets, &starts, &bias;

  size_t count() const { return index.size(); }
  void check(const Packed& packed) const;
  GivenPlanes planes(size_t i) const {
    return {index[i],
            entry(deviation, i),
            entry(deviation_low, i),
            scale[i],
            entry(remainder, i),
            entry(offsets, i),
            entry(starts, i),
            {}};
  }
  OptionalTensor bias_of(size_t i) const { return entry(bias, i); }

 private:
  static OptionalTensor entry(const Tensors& list, size_t i) {
    return list.empty() ? OptionalTensor() : OptionalTensor(list[i]);
  }
};

inline void WeightLists::check(const Packed& packed) const {
  const int bits = packed.layout.deviation_bits;
  const bool exact = packed.stored.has_value();
  const auto check_list = [&](const char* name, const Tensors& given, bool present) {
    const size_t wanted = present ? count() : 0;
    if (given.size() == wanted) return;
    fail(std::string(name) + ": expected " + std::to_string(wanted) + " tensors, for " +
         std::to_string(count()) + (exact ? " exact" : "") + " weights with " +
         std::to_string(bits) + " deviation bits, got " + std::to_string(given.size()));
  };
  check_list("deviation", deviation, bits > 0);
  check_list("deviation_low", deviation_low, bits > 4);
  check_list("scale", scale, true);
  check_list("remainder", remainder, exact);
  check_list("offsets", offsets, exact);
  check_list("starts", starts, exact);
  check_list("bias", bias, !bias.empty());
}

}  // namespace phiquant
