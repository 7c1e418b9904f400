#include "dispatch.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "matrix_unit.h"

namespace phiquant::cpu {

namespace baseline {
const Kernels& kernels();
}
#if defined(__x86_64__)
namespace avx2 {
const Kernels& kernels();
}
namespace avx512 {
const Kernels& kernels();
}
#if defined(PHIQUANT_HAS_AMX)
namespace amx {
const Kernels& kernels();
}
#endif
#elif defined(__aarch64__)
namespace neon {
const Kernels& kernels();
}
#endif

namespace {

constexpr const char* kMatrixUnit = "amx (tile, bf16, int8; granted by the system)";

struct Choice {
  const char* name;
  std::vector<const char*> needs;  // features, all of them
  const Kernels& (*kernels)();
};

// Best first.
const std::vector<Choice>& choices() {
  static const std::vector<Choice> all = {
#if defined(__x86_64__)
#if defined(PHIQUANT_HAS_AMX)
      {"amx",
       {"avx2", "fma", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vbmi",
        "avx512vnni", kMatrixUnit},
       amx::kernels},
#endif
      {"avx512",
       {"avx2", "fma", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vbmi",
        "avx512vnni"},
       avx512::kernels},
      // Every CPU with AVX2 has F16C, which older compilers cannot ask for.
      {"avx2", {"avx2", "fma"}, avx2::kernels},
#elif defined(__aarch64__)
      {"neon", {}, neon::kernels},
#endif
      {"baseline", {}, baseline::kernels},
  };
  return all;
}

std::vector<std::string> missing(const Choice& choice) {
  std::vector<std::string> names;
  for (const char* name : choice.needs) {
    if (!has_feature(name)) names.push_back(name);
  }
  return names;
}

const Kernels& choose() {
  const char* wanted = std::getenv("PHIQUANT_ISA");
  std::string names;
  for (const Choice& choice : choices()) {
    if (!missing(choice).empty()) continue;
    if (wanted == nullptr || *wanted == '\0' || std::string(wanted) == choice.name) {
      return choice.kernels();
    }
    names += (names.empty() ? "" : ", ") + std::string(choice.name);
  }
  throw std::invalid_argument("PHIQUANT_ISA: this CPU and build have " + names + ", got " + wanted);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

const std::vector<Feature>& features() {
  static const std::vector<Feature> all = {
#if defined(__x86_64__)
#define PHIQUANT_FEATURE(name) {name, __builtin_cpu_supports(name) != 0}
      PHIQUANT_FEATURE("avx2"),       PHIQUANT_FEATURE("fma"),
      PHIQUANT_FEATURE("avx512f"),    PHIQUANT_FEATURE("avx512bw"),
      PHIQUANT_FEATURE("avx512cd"),   PHIQUANT_FEATURE("avx512dq"),
      PHIQUANT_FEATURE("avx512vl"),   PHIQUANT_FEATURE("avx512vbmi"),
      PHIQUANT_FEATURE("avx512vnni"), {kMatrixUnit, has_matrix_unit()},
#undef PHIQUANT_FEATURE
#endif
  };
  return all;
}

bool has_feature(const char* name) {
  for (const Feature& feature : features()) {
    if (std::strcmp(feature.name, name) == 0) return feature.present;
  }
  return false;
}

std::vector<InstructionSet> instruction_sets() {
  std::vector<InstructionSet> sets;
  for (const Choice& choice : choices()) sets.push_back({choice.name, missing(choice)});
  return sets;
}

}  // namespace phiquant::cpu
