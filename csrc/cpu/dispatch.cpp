#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

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
#elif defined(__aarch64__)
namespace neon {
const Kernels& kernels();
}
#endif

namespace {

struct Choice {
  bool supported;
  const Kernels& (*kernels)();
};

// Best first.
const Choice* choices(int* count) {
#if defined(__x86_64__)
  // Every CPU with AVX2 has F16C, which older compilers cannot ask for.
  static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  static const bool has_avx512 =
      has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi");
  static const Choice all[] = {
      {has_avx512, avx512::kernels}, {has_avx2, avx2::kernels}, {true, baseline::kernels}};
  *count = 3;
#elif defined(__aarch64__)
  static const Choice all[] = {{true, neon::kernels}, {true, baseline::kernels}};
  *count = 2;
#else
  static const Choice all[] = {{true, baseline::kernels}};
  *count = 1;
#endif
  return all;
}

const Kernels& choose() {
  int count = 0;
  const Choice* all = choices(&count);
  const char* wanted = std::getenv("PHIQUANT_ISA");
  std::string names;
  for (int i = 0; i < count; i++) {
    if (!all[i].supported) continue;
    const Kernels& kernels = all[i].kernels();
    if (wanted == nullptr || *wanted == '\0' || std::string(wanted) == kernels.name) return kernels;
    names += (names.empty() ? "" : ", ") + std::string(kernels.name);
  }
  throw std::invalid_argument("PHIQUANT_ISA: this CPU and build have " + names + ", got " + wanted);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace phiquant::cpu
