#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace phiquant::cpu {

// The kernels of the best instruction set of this CPU, or of the one that the environment variable
// PHIQUANT_ISA names (baseline, avx2, avx512, amx, neon; read once). Throws std::invalid_argument
// if it names another one, or one that this CPU or build has not.
const Kernels& kernels();

// What an instruction set may ask of a CPU. All that is decided by features is decided by this
// list.
struct Feature {
  const char* name;
  bool present;
};
const std::vector<Feature>& features();
bool has_feature(const char* name);  // false for one that is not in the list

// The sets of this build, best first, and the features that this CPU has not.
struct InstructionSet {
  const char* name;
  std::vector<std::string> missing;
};
std::vector<InstructionSet> instruction_sets();

}  // namespace phiquant::cpu
